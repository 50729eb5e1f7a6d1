"""Chapter 1's Jacobians and regulariser for all examples at once, against the plain loop over examples and rows."""

import pytest
import torch

from companion.models.gaussian_noise_injections import NoisyMLP, layer_terms, no_noise, output_jacobians
from companion.nn.likelihoods import CrossEntropy
from companion.seeds import generator


def network():
    return NoisyMLP((64, 64, 64, 64, 10), generator=generator(0, "init")).requires_grad_(False)


def examples(count):
    return torch.randn(count, 64, generator=generator(0, "x"))


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


@pytest.mark.parametrize(
    ("name", "vectorised", "looped"),
    [
        ("Jacobians", lambda net, x: output_jacobians(net, x)[1], loop_jacobians),
        ("regulariser", lambda net, x: layer_terms(net, x, CrossEntropy), loop_terms),
    ],
)
def test_vectorised_beats_the_loop(speed, name, vectorised, looped):
    net, x = network(), examples(128)
    for fast, slow in zip(vectorised(net, x), looped(net, x), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    what = f"{name} of 128 examples, 10 outputs"
    speed.compare(
        "Vectorised against a loop", what, lambda: vectorised(net, x), lambda: looped(net, x), least=10, rounds=3
    )


def test_cost_against_samples(speed):
    net, counts = network(), [8, 16, 32, 64, 128]
    speed.curve(
        "samples",
        "Jacobians of a classifier",
        counts,
        one_by_one=[lambda n=n: loop_jacobians(net, examples(n)) for n in counts],
        all_at_once=[lambda n=n: output_jacobians(net, examples(n)) for n in counts],
    )
    loop, at_once = speed.curves[-1]["series"].values()
    assert all(slow > 5 * fast for slow, fast in zip(loop, at_once, strict=True))
