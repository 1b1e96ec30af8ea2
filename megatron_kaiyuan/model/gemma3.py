"""Weights as transformers' Gemma 3 class stores them, and back, bit for bit.

Its RMSNorm multiplies by (1 + weight), so a gain is stored as gain - 1; it multiplies the embedding by sqrt(hidden), so
the embedding is stored divided by it. Both in FP32, where neither is exact for every value: a gain far from 1 loses its
last bits, and where sqrt(hidden) is no power of two some values are not a product of any FP32 number. What the class
computes with then differs in the last place or two; `remainder` says by how much, so that import is exact.
"""

from __future__ import annotations

import torch

from megatron_kaiyuan.config import ModelConfig

# The file with the remainders, of safetensors' form; servers read `*.safetensors` and pass over it.
REMAINDERS = "remainders.kaiyuan"


def stored(weight: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """The FP32 form of a gain [h] or of rows of the embedding [rows, h]."""
    exact = weight.float()
    if weight.ndim == 1:
        return exact - 1.0
    quotient = exact / _scale(model)
    # The quotient is the nearest; of its neighbours one may be that whose product rounds to the weight.
    for other in (
        quotient.nextafter(quotient.new_tensor(torch.inf)),
        quotient.nextafter(-quotient.new_tensor(torch.inf)),
    ):
        better = (quotient * _scale(model) != exact) & (other * _scale(model) == exact)
        quotient = torch.where(better, other, quotient)
    return quotient


def restored(found: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """What Gemma 3 computes with: the inverse of `stored`, up to the remainder."""
    return found.float() + 1.0 if found.ndim == 1 else found.float() * _scale(model)


def remainder(weight: torch.Tensor, found: torch.Tensor, model: ModelConfig) -> torch.Tensor | None:
    """How many FP32 numbers lie from what `restored` gives to the weight, int8 where that suffices; None: none.

    A half-precision weight needs none where rounding what `restored` gives to its precision gives it back.
    """
    back = restored(found, model).to(weight.dtype)
    if torch.equal(_bits(back), _bits(weight)):
        return None
    distance = _bits(weight) - _bits(back)
    return distance.to(torch.int8) if distance.abs().max() < 128 else distance


def add_remainder(back: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """The weight of which `remainder` gave `distance`, from what `restored` gives in the weight's precision."""
    return (_bits(back) + distance.to(torch.int32)).view(torch.float32).to(back.dtype)


def _scale(model: ModelConfig) -> torch.Tensor:
    return torch.tensor(model.hidden_size**0.5, dtype=torch.float32)


def _bits(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().contiguous().view(torch.int32)
