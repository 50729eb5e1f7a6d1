"""Trains one small network in a fresh Python process with one and two threads; run as a file, it prints JSON.

It imports nothing of this package, so that a process without any of its settings can run it. `fresh_runs` in
`companion.analysis.bitwise` calls it.
"""

import hashlib
import json
import sys

import torch
from torch import nn


def network() -> nn.Module:
    """Return conv, norm, ReLU, conv, norm, ReLU, linear with fixed initial weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 64, 10)),
    )


def train(threads: int, steps: int, follow: list[int]) -> tuple[str, list[torch.Tensor]]:
    """Return the digest of the final weights, and the weights after the steps in `follow`, on fixed random images."""
    torch.set_num_threads(threads)
    net = network()
    stream = torch.Generator().manual_seed(1)
    images, labels = torch.randn(256, 3, 8, 8, generator=stream), torch.randint(10, (256,), generator=stream)
    descent = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    kept = []
    for step in range(steps):
        rows = torch.randint(256, (64,), generator=stream)
        descent.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        descent.step()
        if step + 1 in follow:
            kept.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    final = nn.utils.parameters_to_vector(net.parameters()).detach().numpy().tobytes()
    return hashlib.sha256(final).hexdigest(), kept


def main(settings: dict) -> dict:
    """Return the digests for one thread, one thread again and two, and the distances of one from two."""
    (one, path), (again, _), (two, other) = (train(t, settings["steps"], settings["follow"]) for t in (1, 1, 2))
    distance = [float((a - b).norm() / a.norm()) for a, b in zip(path, other, strict=True)]
    return {"1": one, "1 again": again, "2": two, "distance": distance}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
