"""Where weights start: PyTorch's own default, drawn from a stream of ours."""

import torch
from torch import nn


def default_init(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights and biases of every linear and convolutional layer of `network` uniformly within 1/√fan_in."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = layer.weight[0].numel() ** -0.5
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, -bound, bound, generator=generator)
