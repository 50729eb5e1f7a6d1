"""Chapter 7's coupling flow: a training step against zuko's comparable flow, and an ensemble against one by one."""

import torch
from zuko.distributions import DiagNormal
from zuko.flows import Flow as ZukoFlow
from zuko.flows import UnconditionalDistribution
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.transforms import MonotonicRQSTransform

from companion.nn.spline_flows import Flow
from companion.seeds import generator
from companion.train import Ensemble

SIZE, HIDDEN, COUPLINGS, BINS, BATCH = 64, 64, 4, 8, 256


def ours(seed):
    flow = Flow((1, 1, SIZE), steps=COUPLINGS, hidden=HIDDEN, bins=BINS, generator=generator(seed, "flow"))
    return flow.initialise(torch.randn(BATCH, SIZE, generator=generator(seed, "start")))


def theirs():
    """The same number of couplings, hidden layers, bins and half-and-half masks, on a Gaussian base."""
    couplings = [
        GeneralCouplingTransform(
            features=SIZE,
            mask=torch.arange(SIZE) % 2 == k % 2,
            univariate=MonotonicRQSTransform,
            shapes=[(BINS,), (BINS,), (BINS - 1,)],
            hidden_features=(HIDDEN, HIDDEN),
        )
        for k in range(COUPLINGS)
    ]
    return ZukoFlow(couplings, UnconditionalDistribution(DiagNormal, torch.zeros(SIZE), torch.ones(SIZE), buffer=True))


def training_step(parameters, loss):
    descent = torch.optim.Adam(parameters, lr=1e-3)

    def step():
        descent.zero_grad()
        loss().backward()
        descent.step()

    return step


def test_a_step_is_not_slower_than_zukos(speed):
    x = torch.randn(BATCH, SIZE, generator=generator(0, "x"))
    mine, rival = ours(0), theirs()

    def loss():
        z, logdet = mine(x)
        return (0.5 * z.square().sum(-1) - logdet).mean()

    step = training_step(mine.parameters(), loss)
    other = training_step(rival.parameters(), lambda: -rival().log_prob(x).mean())
    what = f"chapter 7's flow ({COUPLINGS} couplings) against zuko's"
    speed.compare("Against another implementation", what, step, other, least=1.0)


def test_an_ensemble_of_flows(speed):
    members, x = 8, torch.randn(64, SIZE, generator=generator(0, "x"))
    flows = [ours(k) for k in range(members)]
    together = Ensemble(flows)

    def loss(flow):
        z, logdet = flow(x)
        return (z.abs().sum(-1) - logdet).mean()

    step = training_step(together.parameters(), lambda: together.call(loss).sum())
    steps = [training_step(flow.parameters(), lambda flow=flow: loss(flow)) for flow in flows]
    group = "Ensemble against a sequence"
    speed.compare(group, f"{members} flows of chapter 7", step, lambda: [one() for one in steps], least=0.8, rounds=3)
