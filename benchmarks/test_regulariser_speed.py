"""Vectorised Jacobians and regulariser against the plain loop over examples: at least ten times faster."""

import statistics
import time

import pytest
import torch

from companion.models.gaussian_noise_injections import NoisyMLP, layer_terms, no_noise, output_jacobians
from companion.nn.likelihoods import CrossEntropy
from companion.seeds import generator


def problem():
    net = NoisyMLP((64, 64, 64, 64, 10), generator=generator(0, "init")).requires_grad_(False)
    return net, torch.randn(128, 64, generator=generator(0, "x"))


def loop_jacobians(net, x):
    """Per example and output row, one backward pass: what one writes first."""
    rows = []
    for one in x.split(1):
        eps = [e.requires_grad_() for e in no_noise(net, one)]
        outputs = net(one, eps)[0][0]
        rows.append([torch.autograd.grad(out, eps, retain_graph=True) for out in outputs])
    return [torch.stack([torch.stack([r[k][0] for r in row]) for row in rows]) for k in range(len(net.layers))]


def loop_terms(net, x):
    outputs = net(x)[0]
    p = outputs.softmax(1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    terms = [
        torch.stack([0.5 * torch.trace(j.T @ h @ j) for j, h in zip(js, hessian, strict=True)]).mean()
        for js in loop_jacobians(net, x)
    ]
    return torch.stack(terms)


def median_seconds(function, repeats):
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.parametrize(
    ("name", "vectorised", "looped"),
    [
        ("Jacobians", lambda net, x: output_jacobians(net, x)[1], loop_jacobians),
        ("regulariser", lambda net, x: layer_terms(net, x, CrossEntropy), loop_terms),
    ],
)
def test_vectorised_beats_the_loop(benchmark, capsys, name, vectorised, looped):
    torch.set_num_threads(1)
    net, x = problem()
    for fast, slow in zip(vectorised(net, x), looped(net, x), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    benchmark(vectorised, net, x)
    ratio = median_seconds(lambda: looped(net, x), 3) / median_seconds(lambda: vectorised(net, x), 15)
    with capsys.disabled():
        print(f"\n{name}: vectorised {ratio:.0f} times faster than the loop (128 examples, 10 outputs)")
    assert ratio > 10
