"""Explicit Regularisation in Gaussian Noise Injections (Camuto et al., NeurIPS 2020, arXiv 2007.07368).

Networks that take noise at the input and at every hidden activation, never at the output, and the regulariser
that the noise amounts to after averaging:

    R = E_batch[ ½ Σ_k σ_k² Tr(J_kᵀ H J_k) ],    J_k = ∂h_L/∂h_k,    H = ∂²loss/∂h_L².

Because noise enters additively at h_k, J_k is also the Jacobian of the output with respect to the injection ε_k
at ε = 0. Everything below differentiates `model(x, eps)` with respect to `eps`, so it serves any architecture.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from companion.nn.initial import default_init
from companion.nn.likelihoods import Likelihood

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": nn.functional.elu,
    "linear": lambda a: a,
    "relu": torch.relu,
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}


def _inject(h: Tensor, eps: Sequence[Tensor] | None, k: int) -> Tensor:
    return h if eps is None else h + eps[k]


class NoisyMLP(nn.Module):
    """Fully connected net h_k = φ(W_k h_{k−1} + b_k) with noise at h_0 … h_{L−1} (paper, section 2).

    `sizes` = (d_0, …, d_L). The paper's classifiers have no biases and Glorot-normal weights. Its sinusoid
    notebook has biases and PyTorch's default uniform initialisation, which `bias=True` selects; it needs
    them, because without biases a ReLU net of one input is linear on either side of 0.
    """

    def __init__(
        self, sizes: Sequence[int], activation: str = "elu", bias: bool = False, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sizes, self.activation = tuple(sizes), activation
        layers = [nn.Linear(inp, out, bias=bias) for inp, out in pairwise(sizes)]
        for layer in layers:
            if bias:
                default_init(layer, generator)
            else:
                nn.init.xavier_normal_(layer.weight, generator=generator)
        self.layers = nn.ModuleList(layers)

    def sites(self, batch: int) -> list[tuple[int, ...]]:
        """Return the shapes `[batch, d_k]` of the injections k = 0 … L−1."""
        return [(batch, size) for size in self.sizes[:-1]]

    def forward(self, x: Tensor, eps: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Map `[batch, ...]` to outputs `[batch, d_L]` and the (noised) activations h_0 … h_{L−1}."""
        phi = ACTIVATIONS[self.activation]
        h = _inject(x.flatten(1), eps, 0)
        hidden = [h]
        for k, layer in enumerate(self.layers[:-1], start=1):
            h = _inject(phi(layer(h)), eps, k)
            hidden.append(h)
        return self.layers[-1](h), hidden

    def layer_norms(self, x: Tensor) -> Tensor:
        """Return the mean Frobenius norm of each hidden map's Jacobian φ'(a_k) W_k, k = 1 … L−1, `[L−1]`.

        For ReLU this is the masked weight matrix of the authors' Fourier notebook.
        """
        phi = ACTIVATIONS[self.activation]
        h, norms = x.flatten(1), []
        for layer in self.layers[:-1]:
            a = layer(h)
            h, slope = jvp(phi, (a,), (torch.ones_like(a),))  # type: ignore[misc]  # slope = φ'(a), [batch, d_k]
            # ‖diag(φ') W‖_F² = Σ_i φ'_i² ‖W_i‖²
            norms.append((slope.square() @ cast(nn.Linear, layer).weight.square().sum(1)).sqrt().mean())
        return torch.stack(norms)


class NoisyConvNet(nn.Module):
    """The authors' small conv net: 32 and 128 filters 4×4 stride 2, then linear (official code).

    Raises ValueError for an image whose sides are not multiples of 4.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        classes: int,
        channels: tuple[int, int] = (32, 128),
        activation: str = "elu",
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        depth, height, width = image
        if height % 4 or width % 4:
            raise ValueError(f"image sides must be multiples of 4 for two strides of 2, got {height}x{width}")
        self.image, self.channels, self.activation = image, channels, activation
        # TensorFlow's SAME padding for a 4×4 kernel with stride 2 is one pixel on every side.
        self.first = nn.Conv2d(depth, channels[0], 4, stride=2, padding=1)
        self.second = nn.Conv2d(channels[0], channels[1], 4, stride=2, padding=1)
        self.last = nn.Linear(channels[1] * (height // 4) * (width // 4), classes)
        for layer in (self.first, self.second, self.last):
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(cast(Tensor, layer.bias))

    def sites(self, batch: int) -> list[tuple[int, ...]]:
        """Return the shapes of the three injections: image and both feature maps."""
        _, height, width = self.image
        return [
            (batch, *self.image),
            (batch, self.channels[0], height // 2, width // 2),
            (batch, self.channels[1], height // 4, width // 4),
        ]

    def forward(self, x: Tensor, eps: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Map `[batch, channels, height, width]` to logits `[batch, classes]` and (noised) activations."""
        phi = ACTIVATIONS[self.activation]
        h0 = _inject(x, eps, 0)
        h1 = _inject(phi(self.first(h0)), eps, 1)
        h2 = _inject(phi(self.second(h1)), eps, 2)
        return self.last(h2.flatten(1)), [h0, h1, h2]


# --- noise ---


def site_noise(model: Any) -> Callable:
    """Return `draw(generator, batch)`: unit normals for every injection site of `model`, to scale by σ_k."""
    return lambda generator, batch: [
        torch.randn(shape, generator=generator, device=generator.device) for shape in model.sites(len(batch[0]))
    ]


def white_probe(outputs: int) -> Callable:
    """Return `draw(generator, batch)`: random signs `[batch, d_L]`, white, and exact where d_L = 1."""
    return lambda generator, batch: (
        2.0 * torch.randint(0, 2, (len(batch[0]), outputs), generator=generator, device=generator.device) - 1.0
    )


def no_noise(model: Any, x: Tensor) -> list[Tensor]:
    """Return a zero injection for every site of `model` on the batch `x`."""
    return [x.new_zeros(shape) for shape in model.sites(len(x))]


def noised_loss(likelihood: Likelihood) -> Callable:
    """Return the loss of one noised pass; `hyper["variance"]` is σ², for all sites or one each `[L]`."""

    def loss(model, batch, noise, hyper):
        x, y = batch
        sigma = hyper["variance"].sqrt().expand(len(noise))
        outputs, _ = model(x, [s * xi for s, xi in zip(sigma, noise, strict=True)])
        return likelihood.loss(outputs, y).mean(), {}

    return loss


def regularised_loss(likelihood: Likelihood) -> Callable:
    """Return clean loss + R, estimated with one white probe `[batch, d_L]`; `hyper` as for `noised_loss`."""

    def loss(model, batch, noise, hyper):
        x, y = batch
        outputs, terms = probe_terms(model, x, likelihood, noise)
        return likelihood.loss(outputs, y).mean() + (hyper["variance"] * terms).sum(), {}

    return loss


# --- the regulariser ---


def _pullback(model: Any, x: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """Return outputs `[batch, d_L]` and the map from a row vector u per example to J_kᵀ u for every site."""
    outputs, pull, _ = vjp(lambda eps: model(x, eps), no_noise(model, x), has_aux=True)  # type: ignore[misc]
    return outputs, lambda u: pull(u)[0]


def output_jacobians(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return outputs `[batch, d_L]` and J_k for every site, `[batch, d_L, *site]`.

    One vmapped backward pass per output row, all examples and layers at once: examples do not interact, so a
    row's vector-Jacobian product is that row of every example's Jacobian.
    """
    outputs, pullback = _pullback(model, x)
    rows = torch.eye(outputs.shape[-1]).to(outputs)[:, None].expand(-1, len(x), -1)  # [d_L, batch, d_L]
    return outputs, [j.movedim(0, 1) for j in vmap(pullback)(rows)]


def _half_square(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack([0.5 * r.square().sum() for r in rows])


def layer_terms(model: Any, x: Tensor, likelihood: Likelihood) -> Tensor:
    """Return E_batch[½ Tr(J_kᵀ H J_k)] for each k, `[L]`, exact; R = Σ_k σ_k² × these (paper, Theorem 1)."""
    outputs, pullback = _pullback(model, x)
    rows = torch.eye(outputs.shape[-1]).to(outputs)[:, None].expand(-1, len(x), -1)  # [d_L, batch, d_L]
    columns = vmap(lambda v: likelihood.factor(outputs, v))(rows)  # S e_c for every example
    return _half_square(vmap(pullback)(columns)) / len(x)


def probe_terms(model: Any, x: Tensor, likelihood: Likelihood, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and an unbiased estimate of `layer_terms`, `[L]`, from one white probe `[batch, d_L]`.

    One backward pass serves all layers: E‖J_kᵀ S v‖² = Tr(J_kᵀ H J_k). S stays attached to the graph.
    """
    outputs, pullback = _pullback(model, x)
    return outputs, _half_square(pullback(likelihood.factor(outputs, probe))) / len(x)
