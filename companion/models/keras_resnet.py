"""The paper's ResNet29v2 as the Keras example builds it, its schedule, and a small pre-activation ResNet.

Source: the settings in https://github.com/miguelmorin/reproducibility. There every He-normal initialiser carries the
same operation-level seed; here each layer has its own draw.
"""

import torch
from torch import Tensor, nn

from companion.errors import CompanionError

PENALTY = 1e-4  # Keras multiplies the sum of squares itself, not half of it


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # Keras: 0.99 is the share that is kept


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with normalisation and ReLU before each; the very first unit of the net starts bare."""

    def __init__(self, inputs: int, inner: int, outputs: int, *, stride: int, project: bool, bare: bool) -> None:
        super().__init__()
        first = [] if bare else [_norm(inputs), nn.ReLU()]
        self.body = nn.Sequential(
            *first,
            _conv(inputs, inner, 1, stride),
            *(_norm(inner), nn.ReLU(), _conv(inner, inner, 3)),
            *(_norm(inner), nn.ReLU(), _conv(inner, outputs, 1)),
        )
        self.shortcut = _conv(inputs, outputs, 1, stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs, side / stride, side / stride]`."""
        out: Tensor = self.shortcut(x) + self.body(x)
        return out


class ResNetV2(nn.Module):
    """Depth 9 `blocks` + 2: three stages of `blocks` bottlenecks; three for the paper's 849,002 parameters."""

    def __init__(self, *, blocks: int = 3, channels: int = 3, classes: int = 10, generator: torch.Generator) -> None:
        super().__init__()
        units: list[nn.Module] = [_conv(channels, 16, 3), _norm(16), nn.ReLU()]
        inputs, inner = 16, 16
        for stage in range(3):
            outputs = 64 if stage == 0 else 2 * inner
            for block in range(blocks):
                stride = 2 if stage and block == 0 else 1
                bare = stage == 0 and block == 0
                units.append(Bottleneck(inputs, inner, outputs, stride=stride, project=block == 0, bare=bare))
                inputs = outputs
            inner = outputs
        self.features = nn.Sequential(*units, _norm(inputs), nn.ReLU())
        self.head = nn.Linear(inputs, classes)
        he_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[batch, classes]` of x `[batch, channels, 32, 32]`."""
        out: Tensor = self.head(self.features(x).mean((2, 3)))  # a mean has a deterministic backward, pooling has not
        return out


class SmallResNet(nn.Module):
    """Three pre-activation units of two 3×3 convolutions, widths w, 2w, 4w: eight layers with stem and head."""

    def __init__(self, *, width: int, channels: int, classes: int = 10, generator: torch.Generator) -> None:
        super().__init__()
        self.stem = _conv(channels, width, 3, bias=False)
        self.before, self.bodies, self.shortcuts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inputs = width
        for stage, outputs in enumerate((width, 2 * width, 4 * width)):
            stride = 1 if stage == 0 else 2
            self.before.append(nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()))
            self.bodies.append(
                nn.Sequential(
                    _conv(inputs, outputs, 3, stride, bias=False),
                    *(nn.BatchNorm2d(outputs), nn.ReLU(), _conv(outputs, outputs, 3, bias=False)),
                )
            )
            self.shortcuts.append(_conv(inputs, outputs, 1, stride, bias=False) if stage else nn.Identity())
            inputs = outputs
        self.head = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.out = nn.Linear(inputs, classes)
        he_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[batch, classes]` of x `[batch, channels, side, side]`."""
        x = self.stem(x)
        for before, body, shortcut in zip(self.before, self.bodies, self.shortcuts, strict=True):
            h = before(x)
            x = body(h) + (x if isinstance(shortcut, nn.Identity) else shortcut(h))
        out: Tensor = self.out(self.head(x).mean((2, 3)))
        return out


def build(kind: str, *, width: int, channels: int, generator: torch.Generator) -> nn.Module:
    """Return "small" (SmallResNet) or "paper" (ResNet29v2); CompanionError for another kind."""
    if kind == "small":
        return SmallResNet(width=width, channels=channels, generator=generator)
    if kind == "paper":
        return ResNetV2(channels=channels, generator=generator)
    raise CompanionError(f"no network {kind!r}: small or paper")


@torch.no_grad()
def he_normal(net: nn.Module, generator: torch.Generator) -> None:
    """Draw all kernels and head weights He-normal (variance 2 / fan in), biases 0."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.normal_(0, (2 / part.weight[0].numel()) ** 0.5, generator=generator)
            if part.bias is not None:
                part.bias.zero_()


def penalty(net: nn.Module) -> Tensor:
    """Return 1e-4 times the sum of squares of all convolution kernels, which Keras adds to the loss it reports."""
    squares = [part.weight.square().sum() for part in net.modules() if isinstance(part, nn.Conv2d)]
    return PENALTY * torch.stack(squares).sum()


def paper_rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: the paper's decays at 40, 60, 80 and 90 % of training."""
    done = step / steps
    return next(f for after, f in ((0.9, 0.5e-3), (0.8, 1e-3), (0.6, 1e-2), (0.4, 1e-1), (-1, 1.0)) if done > after)
