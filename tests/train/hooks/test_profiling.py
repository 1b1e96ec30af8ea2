"""A profile of a few steps: what it holds, that its parts are the whole, and that the run does not notice."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.platform.npu import NpuPlatform
from tests.helpers.training.saved_state import load
from tests.helpers.training.small_run import (
    TOKENS_PER_STEP,
    events,
    fit_here,
    launch,
    losses,
    metrics,
    start_from,
    succeed,
    train,
)

MICRO_BATCHES = 4
PROFILED = 2
# Three steps of warm-up, those that are profiled, and one more.
STEPS = [f"train.train_tokens={(3 + PROFILED + 1) * TOKENS_PER_STEP}", f"monitor.profile_steps={PROFILED}"]


@pytest.fixture(scope="module")
def profiled(recipe: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = start_from(finished_run, 0, tmp_path_factory.mktemp("profiled"))
    fit_here(recipe, f"run_dir={run_dir}", *STEPS)
    return run_dir


def told(run_dir: Path) -> dict[str, Any]:
    (event,) = events(run_dir, "profile")
    return event


def ranges(run_dir: Path) -> Counter[str]:
    """How often each name comes in the trace."""
    with gzip.open(told(run_dir)["trace"], "rt", encoding="utf-8") as file:
        return Counter(event.get("name", "") for event in json.load(file)["traceEvents"])


def parts(run_dir: Path, column: int = -2) -> dict[str, float]:
    """Milliseconds a step by part, as the table says."""
    lines = Path(told(run_dir)["by_part_and_operator"]).read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("part "))
    rows = lines[first + 1 : lines.index("", first)]
    return {line[:16].strip(): float(line[16:].split()[column]) for line in rows}


def test_trace_holds_the_parts_of_each_step(profiled: Path) -> None:
    assert told(profiled)["first_step"] == 4 and told(profiled)["steps"] == PROFILED
    assert sorted(path.name for path in (profiled / "profile" / "step_4").iterdir()) == ["table.txt", "trace.json.gz"]
    found = ranges(profiled)
    once = ("zero gradients", "gradient reduce", "loss", "gradient norm", "gradient clip", "optimizer")
    for name in ("data", "forward", "backward"):
        assert found[name] == PROFILED * MICRO_BATCHES, name
    for name in (*once, "pipeline"):
        assert found[name] >= PROFILED, name
    # Before and behind each step.
    assert found["hooks: Metrics"] == 2 * PROFILED
    assert found["aten::mm"] > 0


def test_parts_are_the_whole_step(profiled: Path) -> None:
    found = parts(profiled)
    total = found.pop("sum")
    assert total == pytest.approx(1e3 * told(profiled)["seconds_per_step"], abs=0.2)
    assert sum(found.values()) == pytest.approx(total, abs=0.02)
    assert found["everything else"] < 0.3 * total
    assert found["forward"] > found["data"] > 0 and found["backward"] > found["optimizer"] > 0
    # By the clock of the step itself, which does not count the hooks between two steps.
    rows = metrics(profiled)
    clocked = sum(rows[step]["seconds_per_step"] for step in (4, 5)) / PROFILED
    assert total - found["hooks"] == pytest.approx(1e3 * clocked, rel=0.25)


def test_table_has_operators_too(profiled: Path) -> None:
    text = Path(told(profiled)["by_part_and_operator"]).read_text(encoding="utf-8")
    assert text.startswith("2 steps from step 4, rank 0 of 1, cpu\n")
    assert "Self CPU %" in text and "aten::mm" in text


def test_the_run_is_bitwise_the_same_without_it(
    profiled: Path, recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run_dir = start_from(finished_run, 0, tmp_path)
    session = fit_here(recipe, f"run_dir={run_dir}", *STEPS, "monitor.profile_steps=0")
    assert losses(run_dir) == losses(profiled) and len(losses(run_dir)) == 6
    one, other = (load(folder / "checkpoints" / "step_6")[0] for folder in (run_dir, profiled))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert "Profiling" not in {type(hook).__name__ for hook in session.hooks}
    assert events(run_dir, "profile") == [] and not (run_dir / "profile").exists()


def test_other_stages_are_waited_for(recipe: Path, tmp_path: Path) -> None:
    """Two stages, the run as long as the profile: rank 0 writes it at the end, once."""
    length = f"train.train_tokens={5 * TOKENS_PER_STEP}"
    succeed(2, recipe, f"run_dir={tmp_path}", *STEPS, length, "parallel.pipeline_model_parallel_size=2")
    found = ranges(tmp_path)
    assert found["forward"] == found["backward"] == PROFILED * MICRO_BATCHES
    # The whole schedule, and each time that it sends or receives: something behind each forward pass, and at the end.
    assert found["pipeline"] == PROFILED * (1 + MICRO_BATCHES + 1)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step_4"]
    assert events(tmp_path, "stop")[0]["finished"]


def test_a_profile_that_cannot_be_written_stops_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way")
    session = fit_here(recipe, f"run_dir={tmp_path}", *STEPS)
    assert session.finished and len(losses(tmp_path)) == 6
    assert told(tmp_path)["trace"] is None and str(tmp_path / "profile") in told(tmp_path)["problem"]
    assert capsys.readouterr().err.count("warning: no profile: ") == 1


def test_a_full_disk_stops_nothing(recipe: Path, tmp_path: Path) -> None:
    """No file can grow beyond what the checkpoints need, and torch's trace is larger."""
    done = train(1, recipe, f"run_dir={tmp_path}", *STEPS, largest_file=3_000_000)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: no profile: " in done.stderr and "could not write the trace" in told(tmp_path)["problem"]
    assert len(losses(tmp_path)) == 6 and list((tmp_path / "profile").iterdir()) == []


def test_a_run_that_is_too_short_says_so(recipe: Path, tmp_path: Path) -> None:
    fit_here(recipe, f"run_dir={tmp_path}", *STEPS, f"train.train_tokens={3 * TOKENS_PER_STEP}")
    assert "first 3" in told(tmp_path)["problem"] and not (tmp_path / "profile").exists()


def test_npu_has_no_such_profiler(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.train.hooks.profiling import profiling

    with single_process(device):
        assert profiling(load_run(recipe, STEPS), NpuPlatform(), Sinks([])) == []
    assert "monitor.profile_steps is left out" in capsys.readouterr().err


def test_without_a_profiler_parts_are_nothing() -> None:
    from megatron_kaiyuan.train.parts import part

    assert part("data") is part("loss", of=object())


def event(name: str, start: float, end: float, thread: int = 1, kernels: tuple[tuple[str, float], ...] = ()) -> Any:
    made = FunctionEvent(id=0, name=name, thread=thread, start_us=start, end_us=end)
    for kernel, microseconds in kernels:
        made.append_kernel(kernel, 0, microseconds)
    return made


def test_kernels_count_to_the_part_that_started_them() -> None:
    """A made-up step of a GPU: a backward pass runs in a thread of its own, and kernels outlast who started them."""
    platform.activate("cpu")
    from megatron_kaiyuan.train.hooks.profiling import Times, part_times

    found = part_times(
        [
            event("pipeline", 10, 90),
            # The device's record of the range itself, which is not work.
            event("forward", 20, 40, kernels=(("forward", 35),)),
            event("data", 22, 25, kernels=(("Memcpy HtoD", 2),)),
            event("aten::mm", 30, 31, kernels=(("gemm", 30),)),
            event("backward", 50, 80),
            event("MmBackward0", 55, 60, thread=2, kernels=(("gemm", 40), ("gemm", 41))),
            event("hooks: Metrics", 92, 95),
            event("aten::add", 96, 97, kernels=(("add", 1),)),
        ],
        microseconds=100,
    )
    assert found == {
        "hooks": Times(3, 0),
        "data": Times(3, 2),
        "forward": Times(17, 30),
        "backward": Times(30, 81),
        "pipeline": Times(30, 0),
        "everything else": Times(17, 1),
    }


@pytest.mark.gpu
def test_on_a_gpu_parts_have_their_time_on_the_device(recipe: Path, tmp_path: Path) -> None:
    # A fresh process: forks may have a platform already.
    command = ["-m", "megatron_kaiyuan.cli", "train", recipe, f"run_dir={tmp_path}", *STEPS, "platform=cuda"]
    done = launch(1, command)
    assert done.returncode == 0, done.stderr[-3000:]
    device, host = parts(tmp_path, column=-1), parts(tmp_path, column=0)
    assert 0 < device["forward"] < device["backward"] and device["optimizer"] > 0
    assert device["sum"] < 1.05 * host["sum"]
    assert device["everything else"] < 0.1 * device["sum"]
