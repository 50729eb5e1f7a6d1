"""How well a partition agrees with labels: purity (any number of clusters), Hungarian accuracy, NMI and ARI."""

import numpy
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from torch import Tensor


def contingency(clusters: Tensor, labels: Tensor) -> Tensor:
    """Return how many points of cluster k carry label c, int64 `[clusters, labels]`, for integers `[n]`."""
    rows, columns = int(clusters.max()) + 1, int(labels.max()) + 1
    return torch.bincount(clusters * columns + labels, minlength=rows * columns).view(rows, columns)


def purity(clusters: Tensor, labels: Tensor) -> float:
    """Return the share of points whose label is their cluster's majority: many clusters may share a label.

    It grows with the number of clusters, to 1 for one cluster per point: compare at equal K only.
    """
    return float(contingency(clusters, labels).amax(1).sum()) / len(labels)


def hungarian_accuracy(clusters: Tensor, labels: Tensor) -> float:
    """Return the share of points right under the best one-to-one map of clusters to labels."""
    table = contingency(clusters, labels).cpu().numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum()) / len(labels)


def nmi(clusters: Tensor, labels: Tensor) -> float:
    """Return the mutual information of the partitions over the mean of their entropies, from 0 to 1."""
    table = contingency(clusters, labels).double() / len(labels)
    apart = float(torch.special.entr(table.sum(1)).sum() + torch.special.entr(table.sum(0)).sum())
    if apart == 0:  # one cluster and one label: the same partition
        return 1.0
    return max(0.0, 2 * (apart - float(torch.special.entr(table).sum())) / apart)


def ari(clusters: Tensor, labels: Tensor) -> float:
    """Return the adjusted Rand index: 0 on average for unrelated partitions, 1 for equal ones."""
    return float(adjusted_rand_score(labels.cpu().numpy(), clusters.cpu().numpy()))


def nmi_interval(
    clusters: Tensor, labels: Tensor, *, generator: numpy.random.Generator, draws: int = 200
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of `nmi` over the points."""
    rows = generator.integers(len(labels), size=(draws, len(labels)))
    values = [nmi(clusters[row], labels[row]) for row in torch.from_numpy(rows)]
    low, high = numpy.quantile(values, [0.025, 0.975])
    return float(low), float(high)
