"""Model FLOPs utilization (MFU): the share of the devices' peak that the arithmetic of the model makes use of.

Both conventions for attention are reported, as they differ by a tenth for Kaiyuan-2B: all pairs of tokens, as most
papers count (PaLM, arXiv 2204.02311, appendix B), and the half of them that a causal mask leaves, as `kaiyuan plan`
counts.
What is recomputed counts in neither, and documents that are kept apart count as if they were not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.planning.speed import flops_per_token
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.platform.datasheets import device_reported_as

_CONVENTION = (
    "tflops_per_device and mfu: attention over all pairs of tokens (PaLM, appendix B); mfu_causal: over half of them"
)


@dataclass(frozen=True)
class Utilization:
    """Model FLOPs of a token and what they are compared with.

    Attributes:
        flops_per_token: forward and backward, attention over all pairs of tokens.
        flops_per_token_causal: the same over the half of the pairs.
        devices: of the whole job.
        device: one of them, as its driver calls it.
        precision: `train.precision`, which the peak is for.
        peak_tflops: of one device, dense, 1e12 FLOP/s; None: not known.
        peak_source: who says so, or what is missing.
    """

    flops_per_token: float
    flops_per_token_causal: float
    devices: int
    device: str
    precision: str
    peak_tflops: float | None
    peak_source: str

    def columns(self, tokens_per_second: float) -> dict[str, float | None]:
        """Of a row of metrics.

        Args:
            tokens_per_second: of the whole job.
        """
        tflops, tflops_causal = (
            flops * tokens_per_second / self.devices / 1e12
            for flops in (self.flops_per_token, self.flops_per_token_causal)
        )
        return {
            "tflops_per_device": tflops,
            "mfu": tflops / self.peak_tflops if self.peak_tflops else None,
            "mfu_causal": tflops_causal / self.peak_tflops if self.peak_tflops else None,
        }

    def facts(self) -> dict[str, Any]:
        """Of the event that says what the columns mean."""
        return {
            "convention": _CONVENTION,
            "flops_per_token": round(self.flops_per_token),
            "flops_per_token_causal": round(self.flops_per_token_causal),
            "device": self.device,
            "precision": self.precision,
            "peak_tflops": self.peak_tflops,
            "peak_source": self.peak_source,
        }


def utilization(run: RunConfig, platform: Platform, devices: int) -> Utilization:
    """What this run's rows are computed with.

    Args:
        devices: ranks of the job, each of which has one.
    """
    device, precision = platform.device_name(), run.train.precision
    peak, source = _peak(run.monitor.peak_tflops, device, precision)
    return Utilization(
        flops_per_token=flops_per_token(run, causal=False),
        flops_per_token_causal=flops_per_token(run),
        devices=devices,
        device=device,
        precision=precision,
        peak_tflops=peak,
        peak_source=source,
    )


def _peak(given: float | None, device: str, precision: str) -> tuple[float | None, str]:
    if given is not None:
        return given, "monitor.peak_tflops"
    known = device_reported_as(device)
    peak = known.peak_tflops(precision) if known is not None else None
    if known is None or peak is None:
        return None, f"not known for {device} in {precision}: no mfu, unless monitor.peak_tflops is set"
    return peak, known.source
