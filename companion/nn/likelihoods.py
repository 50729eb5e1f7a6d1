"""Output losses with the two derivatives the book needs: residual and Hessian factor, both at the output.

Each loss is a negative log-likelihood in nats, one number per example. `factor` applies a square root S of
the output Hessian, H = S Sᵀ, so that Tr(Jᵀ H J) = E‖Jᵀ S v‖² for any white v, and Σ_c‖Jᵀ S e_c‖² exactly.
"""

import torch
from torch import Tensor


class SquaredError:
    """½‖y − f‖²: the unit-variance Gaussian negative log-likelihood without its constant (nats)."""

    @staticmethod
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss per example `[batch]` for `outputs` and `target` `[batch, outputs]`."""
        return 0.5 * (outputs - target).square().sum(-1)

    @staticmethod
    def residual(outputs: Tensor, target: Tensor) -> Tensor:
        """Return dL/df = f − y, `[batch, outputs]`."""
        return outputs - target

    @staticmethod
    def factor(outputs: Tensor, v: Tensor) -> Tensor:
        """Return S v with S = I, `[batch, outputs]`."""
        return v


class CrossEntropy:
    """−log softmax(f)_y (nats)."""

    @staticmethod
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss per example `[batch]` for logits `[batch, classes]` and labels `[batch]`."""
        return torch.nn.functional.cross_entropy(outputs, target, reduction="none")

    @staticmethod
    def residual(outputs: Tensor, target: Tensor) -> Tensor:
        """Return dL/df = p − e_y, `[batch, classes]`."""
        return outputs.softmax(-1) - torch.nn.functional.one_hot(target, outputs.shape[-1]).to(outputs)

    @staticmethod
    def factor(outputs: Tensor, v: Tensor) -> Tensor:
        """Return S v with S = diag(√p) − p √pᵀ, a square root of diag(p) − p pᵀ, `[batch, classes]`.

        p stays attached to the graph: detaching it leaves the value of a sampled regulariser unbiased and
        biases its gradient.
        """
        p = outputs.softmax(-1)
        # √p written as exp(½ log p): the derivative of sqrt at an underflowed p = 0 is infinite.
        root = (0.5 * outputs.log_softmax(-1)).exp()
        return root * v - p * (root * v).sum(-1, keepdim=True)


Likelihood = type[SquaredError] | type[CrossEntropy]
