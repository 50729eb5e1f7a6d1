"""Responsibilities as matrix products against the broadcast form: at least 5 times faster, 10 times less memory."""

import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from companion.nn.codebooks import log_joint
from companion.seeds import generator

CODES, DIM, SLOTS = 256, 64, 2048


def problem():
    stream = generator(0, "benchmark")
    h = torch.randn(SLOTS, DIM, generator=stream)
    mean, log_variance = (torch.randn(CODES, DIM, generator=stream) for _ in range(2))
    return h, mean, log_variance, torch.zeros(CODES)


def broadcast(h, mean, log_variance, log_weight):
    """The formula as written, with an array of slots × codes × dimensions."""
    square = (h[:, None] - mean).square() * (-log_variance).exp()
    return log_weight - 0.5 * (square + log_variance).sum(-1)


def seconds(function, repeats):
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def peak_bytes(function):
    """Largest sum of tensors alive at once, from the allocations that the profiler saw."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    alive = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def test_matrix_products_beat_the_broadcast_form(benchmark, capsys):
    torch.set_num_threads(1)
    arguments = problem()
    torch.testing.assert_close(log_joint(*arguments), broadcast(*arguments), rtol=1e-4, atol=1e-2)
    benchmark(log_joint, *arguments)
    faster = seconds(lambda: broadcast(*arguments), 5) / seconds(lambda: log_joint(*arguments), 20)
    smaller = peak_bytes(lambda: broadcast(*arguments)) / peak_bytes(lambda: log_joint(*arguments))
    with capsys.disabled():
        print(f"\nresponsibilities, K = {CODES}, d = {DIM}: {faster:.0f} times faster, {smaller:.0f} times smaller")
    assert faster >= 5
    assert smaller >= 10
