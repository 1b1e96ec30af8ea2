"""Trains as `kaiyuan train` does, on a machine that goes wrong at chosen token positions.

    faulty_train '[{"kind": "nan_loss", "from": 2560, "to": 3072}]' RECIPE [KEY=VALUE]...

Kinds: `raise` and `sleep` (of `rank`), `restore` (raises when a rollback restores), `nan_loss`, `infinite_gradient`
(everywhere, or in one `micro_batch` of `rank`), `infinite_weight_gradient` (in what `rank` updates), `loss` (adds `by`
to the loss that is seen, not to the gradient), `weight` (multiplies weight `name` of `layer` by `by`, or fills it; in
the network, not the optimizer, on `rank` or on all), and two that are no faults: `leave_out`, the run starts with these
tokens taken out, and `native_half`, this CPU computes half precision itself though it has no instructions for it.
`times`: so often in this process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.platform import half
from megatron_kaiyuan.train.rank import run_on_this_rank

faults = json.loads(sys.argv[1])
if any(fault["kind"] == "native_half" for fault in faults):
    half.emulated = lambda: ()
platform.activate("cpu")

from megatron_kaiyuan.train import loop, rollback, start, step  # noqa: E402 - a platform has to be active before megatron-core

real_step, real_loss, real_fit = loop.training_step, step._mean_loss, start.fit
real_measure = step.measure_gradients
now: list[dict[str, Any]] = []
networks: list[torch.nn.Module] = []


def training_step(state: Any, *arguments: Any) -> Any:
    networks.append(state.network)
    position = state.progress.tokens
    now[:] = [fault for fault in faults if fault["from"] <= position < fault["to"] and fault.get("times", 1) > 0]
    for fault in now:
        if fault["kind"] in ("raise", "sleep") and fault.get("rank") == torch.distributed.get_rank():
            if fault["kind"] == "raise":
                raise ZeroDivisionError("a fault of this test")
            time.sleep(1000)
        if (
            fault["kind"] == "weight"
            and fault.get("rank", torch.distributed.get_rank()) == torch.distributed.get_rank()
        ):
            multiply_weight(state.network, fault)
    try:
        return real_step(state, *arguments)
    finally:
        for fault in now:
            if "times" in fault:
                fault["times"] -= 1


def multiply_weight(network: Any, fault: dict[str, Any]) -> None:
    for layer in [layer for chunk in network.chunks for layer in chunk.decoder.layers]:
        if layer.layer_number == fault["layer"]:
            weight = layer.get_parameter(fault["name"]).data
            weight.fill_(fault["by"]) if fault.get("fill") else weight.mul_(fault["by"])


def mean_loss(*arguments: Any) -> Any:
    loss, seen = real_loss(*arguments)
    for fault in now:
        if fault["kind"] == "nan_loss":
            loss, seen = loss * torch.nan, {"loss": seen["loss"] * torch.nan}
        elif fault["kind"] == "infinite_gradient" and is_here(fault):
            loss = loss + (loss - loss.detach()) * torch.inf
        elif fault["kind"] == "delay" and fault["rank"] == torch.distributed.get_rank():
            time.sleep(fault["seconds"])
        elif fault["kind"] == "loss":
            seen = {"loss": seen["loss"] + fault["by"]}
    return loss, seen


def is_here(fault: dict[str, Any]) -> bool:
    """Everywhere, or in one of the `micro_batches` that `rank` has."""
    if "rank" not in fault:
        return True
    fault["passes"] = fault.get("passes", 0) + 1
    micro_batch = (fault["passes"] - 1) % fault["micro_batches"] + 1
    return fault["rank"] == torch.distributed.get_rank() and fault["micro_batch"] == micro_batch


def measure_gradients(optimizer: Any, **options: Any) -> Any:
    for fault in now:
        if fault["kind"] == "infinite_weight_gradient" and fault["rank"] == torch.distributed.get_rank():
            for parameter in networks[-1].parameters():
                parameter.main_grad.fill_(torch.inf)  # type: ignore[attr-defined]
    return real_measure(optimizer, **options)


def fit(session: Any) -> None:
    ranges = [[fault["from"], fault["to"]] for fault in faults if fault["kind"] == "leave_out"]
    session.state.progress.left_out += ranges
    real_fit(session)


def restore_step(*arguments: Any) -> None:
    raise ZeroDivisionError("a fault of this test")


if any(fault["kind"] == "restore" for fault in faults):
    rollback.restore_step = restore_step  # type: ignore[assignment]
step.measure_gradients = measure_gradients  # type: ignore[assignment]
loop.training_step, step._mean_loss, start.fit = training_step, mean_loss, fit  # type: ignore[assignment]
if __name__ == "__main__":
    run_on_this_rank(Path(sys.argv[2]), sys.argv[3:])
