"""The one part of a network that a capsule holds, run alone in one process on any platform.

It is built by the same code as in the run, without tensor and pipeline parallelism, and runs twice: in the run's
precision (or another one) and in FP32, which says how far beyond the range a tensor is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.model.build import build_model, transformer_config
from megatron_kaiyuan.monitor.capsule import Tensors, read_capsule
from megatron_kaiyuan.monitor.first_out_of_range import FirstOutOfRange, Seen, TensorWatch, part_weights
from megatron_kaiyuan.monitor.headroom import headroom_bits
from megatron_kaiyuan.monitor.spots import Part
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.platform.precisions import DTYPES

_SMALL_LAYER = {"ffn_hidden_size": 8, "num_attention_heads": 1, "num_query_groups": 1, "kv_channels": 8}


@dataclass(frozen=True)
class ReplayLine:
    """One tensor of the replay.

    Attributes:
        peak: the largest |x| in the precision of the replay; NaN where the tensor holds one.
        peak_fp32: of the same tensor when all is computed in FP32.
        headroom_bits: doublings from `peak_fp32` to 65,504, negative beyond it.
    """

    seen: Seen
    peak: float
    peak_fp32: float

    @property
    def headroom_bits(self) -> float:
        return headroom_bits(self.peak_fp32)


@dataclass(frozen=True)
class Replay:
    """What a replay gave.

    Attributes:
        lines: in the order of execution.
        first: that left the range; None: all stayed inside.
    """

    manifest: dict[str, Any]
    recorded: Seen
    platform: str
    precision: str
    lines: Sequence[ReplayLine]
    first: Seen | None

    @property
    def reproduced(self) -> bool:
        """The tensor that left the range first is the one that did in the run."""
        return self.first == self.recorded


def replay(folder: Path, platform: Platform, precision: str | None) -> Replay:
    """Run what a capsule holds. Needs process groups of one.

    Args:
        precision: default: the run's.

    Raises:
        UserError: the capsule cannot be used, or the platform does not compute in this precision.
    """
    manifest, model, tensors = read_capsule(folder)
    recorded = Seen(**manifest["seen"])
    precision = precision or str(manifest["precision"])
    platform.require_precision(precision)
    first = FirstOutOfRange(platform.keeps_overflow)
    z_loss = float(manifest["z_loss"])
    peaks = _run(folder, model, recorded, tensors, z_loss, platform, precision, first)
    exact = _run(folder, model, recorded, tensors, z_loss, platform, "fp32", None)
    found = None if first.first is None else first.first.seen
    lines = [ReplayLine(seen, peak, exact[seen]) for seen, peak in peaks.items()]
    return Replay(manifest, recorded, platform.name, precision, lines, found)


def _run(
    folder: Path,
    model: ModelConfig,
    recorded: Seen,
    tensors: Tensors,
    z_loss: float,
    platform: Platform,
    precision: str,
    first: FirstOutOfRange | None,
) -> dict[Seen, float]:
    """The largest |x| of every tensor of the part, in the order of execution."""
    network = _build(folder, model, recorded.part, tensors["weights"], z_loss, platform, precision)
    peaks: dict[Seen, float] = {}

    def look(seen: Seen, micro_batch: int, tensor: torch.Tensor) -> None:
        # The one layer here is the first of its network.
        named = seen if seen.layer is None else replace(seen, layer=recorded.layer)
        peaks[named] = float(tensor.abs().amax())
        if first is not None:
            first(named, micro_batch, tensor)

    TensorWatch(network, look)
    try:
        torch.set_rng_state(tensors["random"]["host"])
    except RuntimeError as error:
        raise UserError(f"{folder}: holds no state of the random numbers ({excerpt(error)}); copy it again") from error
    output = _forward(network, tensors["inputs"], platform, DTYPES["fp32" if model.fp32_residual else precision])
    if recorded.direction == "backward":
        gradient = tensors["inputs"]["output_gradient"].to(platform.device, output.dtype)
        torch.autograd.backward(output, gradient)
    return peaks


def _build(
    folder: Path,
    model: ModelConfig,
    part: Part,
    weights: dict[str, torch.Tensor],
    z_loss: float,
    platform: Platform,
    precision: str,
) -> GPTModel:
    """A network that has this part and nothing else, with the capsule's weights."""
    # The one layer is thrown away where the part is another: let it be small.
    sizes = {"num_layers": 1} if part == "layer" else {"num_layers": 1, **_SMALL_LAYER}
    model = model.model_copy(update=sizes)
    config = transformer_config(model, ParallelConfig(), precision)
    network = build_model(model, config, pre_process=part == "embedding", post_process=part == "head", z_loss=z_loss)
    if part != "layer":
        network.decoder.layers = torch.nn.ModuleList()
    own = part_weights(network.decoder.layers[0] if part == "layer" else network, part)
    shapes = [{name: tuple(weight.shape) for name, weight in some.items()} for some in (own, weights)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{folder}: its weights are not those of its model; write the capsule again with this version")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
    return network.to(platform.device, DTYPES[precision])


def _forward(
    network: GPTModel, inputs: dict[str, torch.Tensor], platform: Platform, dtype: torch.dtype
) -> torch.Tensor:
    here = {name: tensor.to(platform.device) for name, tensor in inputs.items()}
    if "hidden" in here:
        # A leaf of its own: both precisions start from the capsule's tensor. What the part gets is no leaf, as in the
        # run: its gradient comes after those of the weights.
        leaf = here["hidden"].to(dtype).detach().requires_grad_()
        network.set_input_tensor(leaf.view_as(leaf))
    return network(here.get("tokens"), here.get("position_ids"), here.get("documents"), labels=here.get("labels"))


def as_text(result: Replay) -> str:
    """What was recorded, a table of all tensors and the verdict."""
    manifest = result.manifest
    rows = [("tensor", "pass", f"max |x| {result.precision}", "max |x| fp32", "headroom bits")]
    for line in result.lines:
        mark = "  <- first" if line.seen == result.first else ""
        figures = (f"{line.peak:.4g}", f"{line.peak_fp32:.4g}", f"{line.headroom_bits:.1f}{mark}")
        rows.append((line.seen.tensor, line.seen.direction, *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"recorded: {manifest['message']}", *table, f"replay: {verdict(result)}"])


def verdict(result: Replay) -> str:
    """One line: what left the range first, and whether that is what was recorded."""
    where = f"in {result.precision} on {result.platform}"
    if result.reproduced:
        return f"reproduced {where}: {result.recorded}"
    found = "every tensor stays in the range" if result.first is None else f"{result.first} leaves the range first"
    return f"not reproduced {where}: {found}, recorded was {result.recorded}"


def as_json(result: Replay) -> dict[str, Any]:
    """For programs; null stands for what is not finite."""
    lines = [
        {
            "tensor": line.seen.tensor,
            "direction": line.seen.direction,
            "module": line.seen.module,
            "max": _finite(line.peak),
            "max_fp32": _finite(line.peak_fp32),
            "headroom_bits": _finite(line.headroom_bits),
        }
        for line in result.lines
    ]
    return {
        "reproduced": result.reproduced,
        "platform": result.platform,
        "precision": result.precision,
        "first": None if result.first is None else asdict(result.first),
        "recorded": result.manifest,
        "tensors": lines,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
