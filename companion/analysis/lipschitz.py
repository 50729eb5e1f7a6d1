"""Upper bounds on how much a network can stretch, as products of norms (`nn.jacobians` gives lower bounds)."""

import numpy
import torch
from torch import Tensor, nn

# The largest slope of each activation; its smallest is 0 for all of them, as `lipsdp` takes for granted.
SLOPES: dict[type[nn.Module], float] = {nn.ELU: 1.0, nn.ReLU: 1.0, nn.Sigmoid: 0.25, nn.Softplus: 1.0, nn.Tanh: 1.0}


def linear_layers(network: nn.Sequential) -> tuple[list[Tensor], list[float]]:
    """Return the weights `[out, in]` and the slopes of the activations between them, of a fully connected network.

    Raises ValueError for a layer that is neither linear nor in `SLOPES`.
    """
    weights, slopes = [], []
    for layer in network:
        if isinstance(layer, nn.Linear):
            weights.append(layer.weight.detach().double())
        elif type(layer) in SLOPES:
            slopes.append(SLOPES[type(layer)])
        else:
            raise ValueError(f"a bound is known for linear layers and {[t.__name__ for t in SLOPES]}, not {layer}")
    return weights, slopes


def product_bound(network: nn.Sequential) -> float:
    """Return Π ||W_l||_2 × Π (largest slope), an upper bound on the Lipschitz constant, by float64 SVD."""
    weights, slopes = linear_layers(network)
    return float(torch.stack([torch.linalg.matrix_norm(w, 2) for w in weights]).prod()) * float(numpy.prod(slopes))
