"""A ladder as a file format: argmax codes and pixels through an arithmetic coder, and back."""

from typing import Any

import numpy
import torch
from torch import Tensor

from companion.analysis.arithmetic_coding import Decoder, Encoder, cumulative
from companion.analysis.discrete_latents import BIT, argmax_scores
from companion.nn.codebooks import one_hot
from companion.nn.pixel_likelihoods import level_table


def _tables(probs: Tensor) -> numpy.ndarray:
    flat = probs.double().flatten(0, -2).cpu().numpy()
    return cumulative(flat)


def _priors(log_p: Tensor, uniform: bool) -> numpy.ndarray:
    return _tables(torch.full_like(log_p, 1 / log_p.shape[-1]) if uniform else log_p.exp())


@torch.no_grad()
def write(model: Any, x: Tensor, *, uniform: bool = False) -> list[int]:
    """Return the bits of images `x` `[n, pixels]`: codes from the top layer down, then pixels given them.

    With `uniform` the codes are written as if every one were equally likely.
    """
    seen = model.infer(x, lambda place, log_q: one_hot(log_q))
    encoder = Encoder()
    for log_p, z in zip(seen.log_p, seen.z, strict=True):
        encoder.put(z.argmax(-1).flatten().tolist(), _priors(log_p, uniform).tolist())
    pixels = _tables(level_table(model.likelihood, seen.out, model.levels, x.shape[-1]))
    encoder.put(x.long().flatten().tolist(), pixels.tolist())
    return encoder.finish()


@torch.no_grad()
def read(model: Any, bits: list[int], images: int) -> Tensor:
    """Return the images `[images, pixels]` that `write` put into `bits` with the model's own priors."""
    decoder, u = Decoder(bits), model.initial(images)
    for layer in model.layers:
        log_p = layer.log_prior(u)
        symbols = torch.tensor(decoder.get(_priors(log_p, False)), device=u.device).view(log_p.shape[:-1])
        u = layer.push(u, torch.nn.functional.one_hot(symbols, log_p.shape[-1]).to(u))
    tables = _tables(level_table(model.likelihood, model.finish(u), model.levels, model.shape.pixels))
    return torch.tensor(decoder.get(tables), device=u.device).view(images, -1)


@torch.no_grad()
def ideal_bits(model: Any, x: Tensor) -> float:
    """Return log2 1/p(x, z*) of all of `x` at the argmax codes, what an ideal coder needs."""
    found = argmax_scores(model, x)
    return float((found["code_length"].sum(-1) - found["fit"]).sum() / BIT)
