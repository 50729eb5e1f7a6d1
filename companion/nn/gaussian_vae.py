"""A Gaussian VAE, fully connected or convolutional: what chapters 2, 3 and 4 train, attack and bound.

All data are flat, `[batch, d]`; a convolutional network reshapes inside. Every function of the book that measures
a VAE uses two methods only: `encode(x) -> (mean, std)` and `decode(z) -> g(z)`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from companion.nn.initial import default_init

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class GaussianVAE(nn.Module):
    """q(z|x) = N(μ(x), diag σ(x)²) and a decoder mean g(z).

    With `std` the encoder gives μ alone, `[batch, n]`, and σ is that constant (a buffer, so that the members of an
    Ensemble may have different ones). Without, it gives (μ, log σ²), `[batch, 2n]`.
    """

    std: Tensor | None

    def __init__(self, encoder: nn.Module, decoder: nn.Module, std: float | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("std", None if std is None else torch.tensor(float(std)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation `[batch, n]` of q(z|x) for `x` `[batch, d]`."""
        code = self.encoder(x)
        if self.std is not None:
            return code, self.std.expand_as(code)
        mean, log_variance = code.chunk(2, -1)
        return mean, (0.5 * log_variance).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Return the decoder's mean g(z) `[batch, d]` for `z` `[batch, n]`."""
        return self.decoder(z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return g(μ(x)) `[batch, d]`, the reconstruction from the mean code."""
        return self.decode(self.encode(x)[0])


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mean, diag std²) || N(0, I)) in nats, `[batch]`, for `mean` and `std` `[batch, n]`."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1)


def mlp(sizes: Sequence[int], activation: str, *, generator: torch.Generator) -> nn.Sequential:
    """Return linear layers of `sizes` with `activation` between them and nothing after the last."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return _initialised(nn.Sequential(*parts[:-1]), generator)


def conv_encoder(
    image: tuple[int, int, int],
    outputs: int,
    channels: Sequence[int],
    hidden: int,
    activation: str = "elu",
    *,
    generator: torch.Generator,
) -> nn.Sequential:
    """Return 4×4 convolutions of stride 2, one hidden layer and a linear one: `[batch, d]` to `[batch, outputs]`.

    `image` is (channels, height, width). Raises ValueError where a side is not a multiple of 2^len(channels).
    """
    depth, height, width = _halved(image, channels)
    parts: list[nn.Module] = [nn.Unflatten(-1, image)]
    for inputs, filters in pairwise((image[0], *channels)):
        parts += [nn.Conv2d(inputs, filters, 4, stride=2, padding=1), ACTIVATIONS[activation]()]
    parts += [nn.Flatten(), nn.Linear(depth * height * width, hidden), ACTIVATIONS[activation]()]
    return _initialised(nn.Sequential(*parts, nn.Linear(hidden, outputs)), generator)


def conv_decoder(
    image: tuple[int, int, int],
    inputs: int,
    channels: Sequence[int],
    hidden: int,
    activation: str = "elu",
    *,
    generator: torch.Generator,
) -> nn.Sequential:
    """Return the mirror image of `conv_encoder`: `[batch, inputs]` to `[batch, d]`; raises as it does."""
    depth, height, width = _halved(image, channels)
    parts: list[nn.Module] = [nn.Linear(inputs, hidden), ACTIVATIONS[activation]()]
    parts += [nn.Linear(hidden, depth * height * width), nn.Unflatten(-1, (depth, height, width))]
    for wide, narrow in pairwise((*reversed(channels), image[0])):
        parts += [ACTIVATIONS[activation](), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
    return _initialised(nn.Sequential(*parts, nn.Flatten()), generator)


def _halved(image: tuple[int, int, int], channels: Sequence[int]) -> tuple[int, int, int]:
    _, height, width = image
    factor = 2 ** len(channels)
    if height % factor or width % factor:
        raise ValueError(f"image sides must be multiples of {factor} for {len(channels)} strides of 2, got {image}")
    return channels[-1], height // factor, width // factor


def _initialised(network: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    default_init(network, generator)
    return network
