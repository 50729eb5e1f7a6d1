"""What repeated runs do to a test set: churn, variance of the test set against that of the distribution, groups.

`wrong` is `[runs, examples]` of 0 and 1 (1: misclassified), `classes` the predicted classes of the same shape.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from companion.errors import CompanionError


def churn(classes: Tensor) -> Tensor:
    """Return the share of examples that two runs classify differently, `[runs, runs]`."""
    hot = torch.nn.functional.one_hot(classes).flatten(1).double()
    return 1 - hot @ hot.mT / classes.shape[1]


def pairs_of(matrix: Tensor, group: Tensor, *, same: bool) -> Tensor:
    """Return the entries above the diagonal of `[runs, runs]` whose runs are of the same group, or of different."""
    alike = group[:, None] == group[None]
    return matrix[torch.triu(alike if same else ~alike, diagonal=1)]


class ErrorVariance(NamedTuple):
    """Variances over runs of the error rate: on this test set, if errors were independent, on the distribution."""

    test: Tensor
    independent: Tensor
    distribution: Tensor


def error_variance(wrong: Tensor) -> ErrorVariance:
    """Split the variance over runs of the test error (Jordan 2023), unbiased for a finite number of runs.

    The distribution's part may come out negative, as any unbiased estimator of something near 0 must.
    Leading dimensions are kept. Raises CompanionError below two runs or examples.
    """
    runs, n = wrong.shape[-2:]
    if min(runs, n) < 2:
        raise CompanionError(f"needs at least two runs and two examples, found {runs} and {n}")
    values = wrong.double()
    test = values.mean(-1).var(-1)
    # `var` divides by runs - 1: the unbiased version of e (1 - e) for the error frequency e of an example
    independent = values.var(-2).sum(-1) / n**2
    return ErrorVariance(test, independent, n / (n - 1) * (test - independent))


def split_half(wrong: Tensor, *, draws: int, generator: torch.Generator) -> Tensor:
    """Return the correlation over runs of the error rates on two random halves of the test set, `[draws]`."""
    n = wrong.shape[-1]
    found = []
    for _ in range(draws):
        order = torch.randperm(n, generator=generator).to(wrong.device)
        halves = torch.stack([wrong[:, order[: n // 2]].double().mean(1), wrong[:, order[n // 2 :]].double().mean(1)])
        found.append(torch.corrcoef(halves)[0, 1])
    return torch.stack(found)


def group_excess(wrong: Tensor, groups: Tensor) -> Tensor:
    """Return, over groups of examples, the mean variance of a group's error rate over its independent-errors value.

    1 for a group whose examples err independently of each other; how far above says how much a run moves the group
    as a whole. Groups without any change over runs do not count; NaN where no group changes.
    """
    found = []
    for group in groups.unique():
        parts = error_variance(wrong[:, groups == group])
        if parts.independent > 0:
            found.append(parts.test / parts.independent)
    return torch.stack(found).mean() if found else torch.tensor(torch.nan, dtype=torch.float64)
