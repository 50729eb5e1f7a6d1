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
    """A ladder of one layer whose code is the nearest one; the prior is uniform, so that its rate is M log K.

    `counts` and `sums`, of which the codes are ratios, are buffers: a checkpoint holds them.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        (layer,) = self.layers
        self.register_buffer("counts", torch.zeros_like(layer.codebook.mean[..., 0]))
        self.register_buffer("sums", torch.zeros_like(layer.codebook.mean))

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
    """−log p(x|e) + ¼ mean_d (h − sg(e))², summed over slots, per image; codes move by `MovingAverageCodes` alone."""
    x = batch[0]
    out, h, z = model.quantise(x)
    commitment = (h - (z @ model.layers[0].codebook.mean).detach()).square().mean(-1).sum(-1).mean()
    fit = model.likelihood.log_pixels(out, x).sum(-1).mean()
    return 0.25 * commitment - fit, {"fit": fit}


class MovingAverageCodes:
    """Batches of a source; each one first moves the codes of an Ensemble of `QuantisedVAE` towards what they win.

    Codes are ratios of moving averages of sums and counts with the given `decay`. They start at outputs of the first
    batch, and a code that wins less than a hundredth of its share is put on an output again.
    """

    def __init__(self, source: Any, ensemble: Any, decay: float = 0.98) -> None:
        self.source, self.ensemble, self.decay = source, ensemble, decay
        (self.codes,) = (p for name, p in ensemble.named_parameters() if name.endswith("codebook.mean"))
        (self.counts,) = (b for name, b in ensemble.named_buffers() if name.endswith("counts"))
        (self.sums,) = (b for name, b in ensemble.named_buffers() if name.endswith("sums"))

    @torch.no_grad()
    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the images of `step` after the codes have moved on them."""
        x = self.source.batch(step)[0]
        h, z = self.ensemble.call(lambda model: tuple(part.flatten(0, 1) for part in model.quantise(x)[1:]))
        self.counts.lerp_(z.sum(1), 1 - self.decay)
        self.sums.lerp_(z.mT @ h, 1 - self.decay)
        codes = self.counts.shape[-1]
        idle = self.counts < 0.01 * self.counts.mean(-1, keepdim=True)
        idle |= torch.tensor(step == 0, device=x.device)
        fresh = h[:, :: max(1, h.shape[1] // codes)][:, :codes]  # spread over the images of the batch
        share = h.shape[1] / codes
        self.counts.copy_(torch.where(idle, share, self.counts))
        self.sums.copy_(torch.where(idle[..., None], share * fresh, self.sums))
        self.codes.copy_(self.sums / self.counts[..., None])
        return (x,)
