"""The VQ-VAE beside chapter 8's model: hard nearest codes, straight-through gradients, codes by moving averages.

After van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017), on the same networks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from companion.models.relaxed_responsibility_vq import Ladder
from companion.nn.codebooks import one_hot, squared_distances


class QuantisedVAE(Ladder):
    """A ladder of one layer whose code is the nearest one; the prior is uniform, so that its rate is M log K."""

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs, h `[batch, slots, d]`, the nearest codes one-hot; gradients pass straight through to h."""
        (layer,) = self.layers
        u = self.initial(len(x))
        h = layer.posterior_output(u, self.features(x))
        codes: Tensor = layer.codebook.mean.detach()
        z = one_hot(-squared_distances(h, codes))
        e = h + (z @ codes - h).detach()
        return self.finish(layer.push_vector(u, e)), h, z


def vq_loss(model: Any, batch: tuple[Tensor, ...], _noise: Any, _hyper: Mapping[str, Tensor]) -> Any:
    """−log p(x|e) + ¼‖h − sg(e)‖² per image, nats; the codes move by `MovingAverageCodes`, not by this loss."""
    x = batch[0]
    out, h, z = model.quantise(x)
    commitment = (h - (z @ model.layers[0].codebook.mean).detach()).square().sum((-1, -2)).mean()
    fit = model.likelihood.log_pixels(out, x).sum(-1).mean()
    return 0.25 * commitment - fit, {"fit": fit}


class MovingAverageCodes:
    """Batches of a source; each one first moves the codes of an Ensemble of `QuantisedVAE` towards what they win.

    Codes are ratios of moving averages of sums and counts with the given `decay`.
    """

    def __init__(self, source: Any, ensemble: Any, decay: float = 0.98) -> None:
        self.source, self.ensemble, self.decay = source, ensemble, decay
        (self.codes,) = (p for name, p in ensemble.named_parameters() if name.endswith("codebook.mean"))
        self.counts = torch.ones_like(self.codes[..., 0])
        self.sums = self.codes.detach().clone()

    @torch.no_grad()
    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the images of `step` after the codes have moved on them."""
        x = self.source.batch(step)[0]
        h, z = self.ensemble.call(lambda model: tuple(part.flatten(0, 1) for part in model.quantise(x)[1:]))
        self.counts.lerp_(z.sum(1), 1 - self.decay)
        self.sums.lerp_(z.mT @ h, 1 - self.decay)
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-5)[..., None])
        return (x,)
