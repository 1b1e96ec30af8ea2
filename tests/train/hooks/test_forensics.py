"""Overflows that are planted in a chosen layer are named exactly on any layout of ranks, and nothing else changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kaiyuan import platform
from tests.helpers.processes.rank_server import run
from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import TOKENS_PER_STEP, events, fit_here, losses, metrics, train_on_bad_machine

TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
LAYOUTS = {
    "alone": (1, []),
    "tp2": (2, [TENSOR]),
    "tp2-sequence": (2, [TENSOR, "parallel.sequence_parallel=true"]),
    "pp2": (2, [PIPELINE]),
    "dp2": (2, []),
    "tp2-pp2": (4, [TENSOR, PIPELINE]),
    # A layer on each virtual stage.
    "pp2-virtual2": (2, [PIPELINE, "parallel.virtual_pipeline_model_parallel_size=2", "model.num_layers=4"]),
    "pp2-recompute": (2, [PIPELINE, "parallel.recompute_granularity=full"]),
}
DEFAULT = ("tp2", "pp2")
# Which ranks hold layer 1 and layer 2 of the first data-parallel rank.
HOLDERS = {
    "alone": ([0], [0]),
    "tp2": ([0, 1], [0, 1]),
    "tp2-sequence": ([0, 1], [0, 1]),
    "pp2": ([0], [1]),
    "dp2": ([0], [0]),
    "tp2-pp2": ([0, 1], [2, 3]),
    "pp2-virtual2": ([0], [1]),
    "pp2-recompute": ([0], [1]),
}
SCALE = 2.0**18
FP16 = ["train.precision=fp16", f"optimizer.initial_loss_scale={SCALE}", "optimizer.hysteresis=1"]
KEEP_ALL = "monitor.overflow_capsule_scale=1e9"


def plant(step: int, layer: int, name: str, by: float, **more: Any) -> dict[str, Any]:
    """A weight that is multiplied before one step. Steps that overflow update nothing, so it stays as it is."""
    start = (step - 1) * TOKENS_PER_STEP
    return {
        "kind": "weight",
        "from": start,
        "to": start + TOKENS_PER_STEP,
        "layer": layer,
        "name": name,
        "by": by,
        **more,
    }


def backward(step: int) -> list[dict[str, Any]]:
    """Forward all stays as it was: the gain makes up for the small weight. Back through the norm it does not."""
    last, norm = "self_attention.linear_proj.weight", "self_attention.post_norm.weight"
    return [plant(step, 1, last, 1e-3), plant(step, 1, norm, 100.0)]


def forward(step: int) -> list[dict[str, Any]]:
    """The post-norm behind it would make up for it, if the sum were still a number."""
    return [plant(step, 2, "mlp.linear_fc1.weight", 100.0), plant(step, 2, "mlp.linear_fc2.weight", 1e4)]


def steps(count: int) -> str:
    return f"train.train_tokens={count * TOKENS_PER_STEP}"


def replayed(capsule: str, precision: str | None = None) -> Any:
    """What `kaiyuan replay` finds, in this process."""
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.monitor.replay import replay

    with single_process(device):
        return replay(Path(capsule), device, precision)


def documents_of(recipe: Path, start: int, stop: int) -> set[int]:
    """The slow and obvious way: walk the order of the first phase document by document."""
    lengths = np.random.default_rng(0).integers(20, 200, 400)  # as `write_corpus` drew them
    order = np.fromfile(recipe.parent / "phases" / "first" / "order.bin", np.uint64) & np.uint64(2**48 - 1)
    found, position = set(), 0
    for sequence in order.astype(int):
        if position < stop and position + lengths[sequence] > start:
            found.add(int(sequence))
        position += lengths[sequence]
    return found


def numbers(ranges: str) -> set[int]:
    spans = [list(map(int, text.split("-"))) for text in ranges.split()]
    return {number for span in spans for number in range(span[0], span[-1] + 1)}


@pytest.mark.parametrize(
    "layout", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_a_planted_overflow_is_named_exactly(layout: str, recipe: Path, tmp_path: Path) -> None:
    """Backward in layer 1 at step 2, forward in layer 2 at step 3, and with tensor ranks on one of them at step 4.

    All layouts: python -m pytest tests/train/hooks/test_forensics.py -m "slow or not slow".
    """
    processes, overrides = LAYOUTS[layout]
    faults, expected = [*backward(2), *forward(3)], [
        (2, "backward", 1, "attention_output", "self_attention.post_norm", HOLDERS[layout][0]),
        (3, "forward", 2, "mlp_output", "mlp.linear_fc2", HOLDERS[layout][1]),
    ]  # fmt: skip
    if TENSOR in overrides:
        faults.append(plant(4, 1, "mlp.linear_fc1.weight", 4e5, rank=1))
        expected.append((4, "forward", 1, "mlp_gate_and_up", "mlp.linear_fc1", [1]))
    count = len(expected) + 1
    done = train_on_bad_machine(
        processes, faults, recipe, f"run_dir={tmp_path}", steps(count), KEEP_ALL, *FP16, *overrides
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = events(tmp_path, "overflow")
    fields = ("step", "direction", "layer", "tensor", "module", "ranks")
    assert [tuple(event[name] for name in fields) for event in told] == expected
    for event in told:
        assert event["rank"] == event["ranks"][0] and event["micro_batch"] == 1
        assert event["loss_scale"] == metrics(tmp_path)[event["step"]]["loss_scale"]
        assert metrics(tmp_path)[event["step"]]["grad_norm"] is None
        start = (event["step"] - 1) * TOKENS_PER_STEP
        assert event["tokens"] == [start, start + 2 * 64 + 1]
        (documents,) = event["documents"]
        assert (documents["phase"], documents["corpus"]) == ("first", "text")
        assert numbers(documents["sequences"]) == documents_of(recipe, *event["tokens"])
        result = replayed(event["capsule"])
        assert result.reproduced and dataclasses.asdict(result.first) == result.manifest["seen"]
        assert event["capsule_bytes"] == sum(file.stat().st_size for file in Path(event["capsule"]).iterdir()) < 400_000
        # FP32 has room for it: the figure says how far beyond 65,504 it is.
        (line,) = (line for line in result.lines if line.seen == result.first)
        assert 65504 < line.peak_fp32 < float("inf") and -20 < line.headroom_bits < 0
        assert not np.isfinite(line.peak)


def test_every_micro_batch_and_data_parallel_rank(recipe: Path, tmp_path: Path) -> None:
    """The gradient of one token's loss in the last micro-batch of rank 1 alone is too large."""
    when = {"from": TOKENS_PER_STEP, "to": 2 * TOKENS_PER_STEP}
    fault = {"kind": "infinite_gradient", **when, "rank": 1, "micro_batch": 2, "micro_batches": 2}
    done = train_on_bad_machine(2, [fault], recipe, f"run_dir={tmp_path}", steps(2), KEEP_ALL, *FP16)
    assert done.returncode == 0, done.stderr[-3000:]
    (event,) = events(tmp_path, "overflow")
    assert (event["tensor"], event["layer"], event["direction"]) == ("losses", None, "backward")
    assert (event["rank"], event["ranks"], event["micro_batch"]) == (1, [1], 2)
    # Rank 1 takes the second stripe of each pair of stripes of two samples.
    assert event["tokens"] == [TOKENS_PER_STEP + 6 * 64, TOKENS_PER_STEP + 8 * 64 + 1]


@pytest.mark.slow
def test_a_sum_over_tensor_ranks(recipe: Path, tmp_path: Path) -> None:
    """Each rank's part of the sum is three quarters of the range.

    All weights of the MLP are alike, and so are its activations; how large they are says a run without the overflow.
    """
    fill = [plant(1, 1, "mlp.linear_fc1.weight", 0.05, fill=True), plant(1, 1, "mlp.linear_fc2.weight", 1.0, fill=True)]
    small = [steps(1), *FP16, "monitor.activations_every_steps=1"]
    assert train_on_bad_machine(1, fill, recipe, f"run_dir={tmp_path / 'small'}", *small).returncode == 0
    activations = events(tmp_path / "small", "monitor")[0]["activations"]
    largest = activations["mlp_activation"]["max"][0]
    assert activations["mlp_output"]["max"][0] == pytest.approx(128 * largest, rel=0.01)
    fill[1]["by"] = 0.75 * 65504 / (64 * largest)
    done = train_on_bad_machine(2, fill, recipe, f"run_dir={tmp_path / 'large'}", steps(1), TENSOR, *FP16)
    assert done.returncode == 0, done.stderr[-3000:]
    (event,) = events(tmp_path / "large", "overflow")
    assert (event["tensor"], event["module"], event["ranks"]) == ("mlp_output", "mlp.linear_fc2", [0, 1])
    assert replayed(event["capsule"]).reproduced


def test_the_run_is_bitwise_that_without_it(recipe: Path, tmp_path: Path) -> None:
    """The scaler falls from 2^24 with overflows between good steps: its daily work, which is named and not kept."""
    scaler = ["train.precision=fp16", f"optimizer.initial_loss_scale={2.0**24}", "optimizer.loss_scale_window=2"]
    options = [steps(8), *scaler, "optimizer.hysteresis=1", "checkpoint.save_every_steps=8"]
    for name, capsules in (("with", 3), ("without", 0)):
        run_dir = tmp_path / name
        session = fit_here(recipe, f"run_dir={run_dir}", *options, f"monitor.overflow_capsules={capsules}")
        assert ("Forensics" in {type(hook).__name__ for hook in session.hooks}) == bool(capsules)
    one, other = tmp_path / "with", tmp_path / "without"
    assert losses(one) == losses(other) and len(losses(one)) == 8
    assert_same_state(one / "checkpoints" / "step_8", other / "checkpoints" / "step_8")
    told, overflows = events(one, "overflow"), metrics(one)[8]["overflow_steps"]
    assert len(told) == overflows > 1 and events(other, "overflow") == []
    assert all(event["direction"] == "backward" and "capsule" not in event for event in told)
    assert not (one / "overflow").exists()
    history = [[{**event, "time": 0} for event in events(run_dir, "loss_scale")] for run_dir in (one, other)]
    assert history[0] == history[1]


def test_so_many_capsules_are_kept(recipe: Path, tmp_path: Path) -> None:
    """The first one. At the smallest scale an overflow is no daily work: the run stops, and says why."""
    options = ["monitor.overflow_capsules=1", "faults.on_bad_step=skip", "faults.max_skips_in_a_row=1"]
    smallest = [f"optimizer.min_loss_scale={SCALE}"]
    done = train_on_bad_machine(1, backward(2), recipe, f"run_dir={tmp_path}", steps(4), *FP16, *options, *smallest)
    assert done.returncode == 2 and "gradients overflow at the smallest loss scale" in done.stderr
    told = events(tmp_path, "overflow")
    assert [(event["step"], "capsule" in event) for event in told] == [(2, True), (3, False)]
    assert [path.name for path in (tmp_path / "overflow").iterdir()] == ["step_2"]


def test_other_precisions_have_it_too(recipe: Path, tmp_path: Path) -> None:
    """A BF16 run that stops at its first bad step; what was found is written before it ends."""
    faults = [plant(2, 2, "mlp.linear_fc1.weight", 1e38), plant(2, 2, "mlp.linear_fc1.weight", 1e3)]
    options = ["train.precision=bf16", "faults.on_bad_step=stop"]
    done = train_on_bad_machine(1, faults, recipe, f"run_dir={tmp_path}", steps(3), *options)
    assert done.returncode == 2 and "loss is nan" in done.stderr
    (event,) = events(tmp_path, "overflow")
    assert (event["step"], event["tensor"], event["layer"]) == (2, "mlp_gate_and_up", 2)
    command = run(1, ["-m", "megatron_kaiyuan.cli", "replay", event["capsule"], "--json"])
    assert command.returncode == 0, command.stderr
    assert json.loads(command.stdout)["first"]["tensor"] == "mlp_gate_and_up"


def test_an_overflow_that_no_tensor_shows(recipe: Path, tmp_path: Path) -> None:
    fault = {"kind": "infinite_weight_gradient", "rank": 0, "from": 0, "to": TOKENS_PER_STEP}
    done = train_on_bad_machine(1, [fault], recipe, f"run_dir={tmp_path}", steps(1), "train.precision=fp16")
    assert done.returncode == 0, done.stderr[-3000:]
    (event,) = events(tmp_path, "overflow")
    assert "every tensor stayed in the range of fp16" in event["message"] and "tensor" not in event


def test_a_capsule_that_cannot_be_written_stops_nothing(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "overflow").write_text("a file where the folder should be")
    done = train_on_bad_machine(1, forward(1), recipe, f"run_dir={tmp_path}", steps(1), *FP16)
    assert done.returncode == 0, done.stderr[-3000:]
    (event,) = events(tmp_path, "overflow")
    assert event["tensor"] == "mlp_output" and event["capsule"] is None and "overflow" in event["capsule_problem"]
    assert "no capsule of this overflow" in done.stderr
