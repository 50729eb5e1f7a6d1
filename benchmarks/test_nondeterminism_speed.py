"""Many runs as slots of one batched product against the same runs one after the other."""

import torch

from companion.models.nondeterminism import Recipe, Slot, train
from companion.seeds import generator

REPLICAS, STEPS = 40, 20


def test_replicas(speed):
    x, y = torch.randn(500, 64, generator=generator(0, "x")), torch.arange(500) % 10
    slots = [Slot(k, k) for k in range(REPLICAS)]
    recipe = Recipe(STEPS)

    def together():
        return train(slots, x, y, recipe, seed=0)

    def one_by_one():
        return [train([slot], x, y, recipe, seed=0) for slot in slots]

    stacked, alone = together(), one_by_one()
    torch.testing.assert_close(stacked.weights[1][3], alone[3].weights[1][0], rtol=1e-2, atol=1e-3)
    speed.compare(
        "Ensemble against a sequence", f"{REPLICAS} runs of chapter 10's network", together, one_by_one, least=3
    )
