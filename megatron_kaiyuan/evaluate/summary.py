"""An evaluation in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING

# The metrics that are printed of a task; lm-eval may have computed more.
_TOLD = {ROLLING: {"bits_per_byte": "bits per byte"}, CONTINUATION: {"acc": "continuation accuracy"}}
_TOLD_OF_OTHERS = {"bits_per_byte": "bits per byte", "acc": "accuracy"}


def summary_line(result: Mapping[str, Any]) -> str:
    """The model's figures, the untrained model's beside them."""
    model, baseline = result["model"], result["baseline"]
    parts = [_held_out(model, baseline)] if model["held_out"] else []
    for task, metrics in sorted(model["tasks"].items(), key=lambda pair: (pair[0] != CONTINUATION, pair[0])):
        for metric, words in _TOLD.get(task, _TOLD_OF_OTHERS).items():
            if metric in metrics:
                part = f"{words} {metrics[metric]:.2f}"
                if baseline and metric in baseline["tasks"].get(task, {}):
                    part += f" against {baseline['tasks'][task][metric]:.2f} untrained"
                parts.append(part if task in _TOLD else f"{task} {part}")
        if task not in _TOLD and task in model.get("calibration", {}):
            error = model["calibration"][task]["expected_calibration_error"]
            parts.append(f"{task} calibration error {error:.2f}")
    return "; ".join(parts)


def _held_out(model: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    loss, entropy = model["held_out"]["nats_per_token"], model["held_out"]["unigram_entropy"]
    bits = model["held_out"].get("bits_per_byte")
    known = "" if bits is None else f", {bits:.3f} bits/byte"
    side = "below" if loss <= entropy else "above"
    line = f"held-out {loss:.2f} nats/token{known}, unigram entropy {entropy:.2f} ({abs(entropy - loss):.2f} {side})"
    return (
        f"{line}, untrained {baseline['held_out']['nats_per_token']:.2f}" if baseline and baseline["held_out"] else line
    )
