"""How far activations are from the end of FP16's range, and what to do when they come close."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.monitor.tensors import OUTSIDE_LAYERS

FP16_MAX, FP16_SMALLEST = 65504.0, 2.0**-24
# A tensor is reported again when it has lost one bit more since the last report.
_AGAIN_AFTER_BITS = 1.0
_STREAM = ("residual", "residual_after_attention", "attention_output", "mlp_output")


def headroom_bits(peak: float) -> float:
    """Doublings from the largest |x| to 65,504: at most 40, of FP16's smallest number; minus infinity for no number."""
    return math.log2(FP16_MAX / max(peak, FP16_SMALLEST)) if math.isfinite(peak) else -math.inf


@dataclass(frozen=True)
class LowHeadroom:
    """A tensor that is close to the end of FP16's range.

    Attributes:
        layer: counted from 1; None for what is in no layer.
        bits: of headroom; minus infinity when the range was left.
        advice: what to do about it.
    """

    tensor: str
    layer: int | None
    bits: float
    advice: str

    def __str__(self) -> str:
        where = self.tensor if self.layer is None else f"{self.tensor} of layer {self.layer}"
        state = f"{self.bits:.1f} bits below 65,504" if math.isfinite(self.bits) else "beyond FP16's range"
        return f"{where} is {state}; {self.advice}"


class HeadroomWatch:
    """Tells of each tensor when the worst layer of it has too little headroom, once, and again for each bit lost.

    What was reported is not saved with a run: after a restart it is reported once more.
    """

    def __init__(self, model: ModelConfig, least_bits: float):
        self._model, self._least_bits = model, least_bits
        self._told: dict[str, float] = {}

    def look(self, peaks: Mapping[str, Sequence[float]]) -> Iterator[LowHeadroom]:
        """Return what is to be reported of one step.

        Args:
            peaks: the largest |x| of each tensor, by place.
        """
        for tensor, values in peaks.items():
            place = max(range(len(values)), key=values.__getitem__)
            bits = headroom_bits(values[place])
            if bits >= self._least_bits:
                self._told.pop(tensor, None)
            elif self._told.get(tensor, math.inf) - bits >= _AGAIN_AFTER_BITS:
                self._told[tensor] = bits
                layer = None if tensor in OUTSIDE_LAYERS else place + 1
                yield LowHeadroom(tensor, layer, bits, self._advice(tensor))

    def _advice(self, tensor: str) -> str:
        model = self._model
        if tensor in ("query", "key", "attention_logits") and not model.qk_layernorm:
            return "start again with model.qk_layernorm=true, or lower the learning rate"
        if tensor in _STREAM and not model.sandwich_norm:
            return "start again with model.sandwich_norm=true, or lower the learning rate"
        if tensor in _STREAM:
            return "lower the learning rate, or start again with a smaller model.post_norm_initial_gain"
        return "lower the learning rate or raise optimizer.weight_decay: the weights before it have grown"
