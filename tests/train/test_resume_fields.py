"""Every field of the schema has a class that says what a resume does with it, and the classes are true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.compare import AT_RESUME, AtResume, Change, at_resume, is_refused
from tests.helpers.training.recipe_fields import fields_of
from tests.helpers.training.small_run import run as run_program
from tests.helpers.training.small_run import start_from, succeed

# Fields that a checkpoint holds too, or that bend what it continues, with another value than the small run's.
CHANGED: dict[str, Any] = {
    "optimizer.adam_beta1": 0.5,
    "optimizer.adam_beta2": 0.6,
    "optimizer.adam_eps": 1e-2,
    "optimizer.clip_grad": 0.25,
    "optimizer.min_loss_scale": 2.0**15,
    "optimizer.loss_scale_window": 7,
    "optimizer.hysteresis": 5,
}
# Of these a checkpoint holds nothing: they are read from the recipe at each start, or at each step.
READ_AT_EACH_START = {
    "data.phases.peak_lr", "data.phases.final_lr", "data.phases.decay_fraction",
    "data.phases.decay_shape", "data.reset_attention_mask", "data.eod_mask_loss",
    "train.seq_length", "train.global_batch_size", "train.train_tokens", "train.z_loss", "optimizer.qk_clip_tau",
    "optimizer.weight_decay", "optimizer.wd_mult", "optimizer.lr_mult", "optimizer.decoupled_lr",
    "optimizer.warmup_tokens", "optimizer.schedule_tokens", "faults.on_bad_step", "faults.spike_zscore",
    "faults.spike_window", "faults.max_skips_in_a_row", "faults.max_rollbacks", "faults.rollback_batches",
    "ema.decay", "ema.every_steps",
}  # fmt: skip

# Between two learning rates that are looked at.
EVERY_TOKENS = 100


def test_every_field_has_one_class_and_no_class_is_of_a_field_that_is_gone() -> None:
    assert fields_of(RunConfig) == AT_RESUME.keys()
    taken = {name for name, found in AT_RESUME.items() if found is AtResume.TAKEN}
    assert taken == CHANGED.keys() | READ_AT_EACH_START


def test_what_is_refused() -> None:
    refused = {name for name in AT_RESUME if is_refused(Change(name, 1, 2))}
    assert refused == {
        name for name, found in AT_RESUME.items() if found in (AtResume.ANOTHER_RUN, AtResume.FIRST_START)
    }
    assert at_resume("data.phases.3.peak_lr") is AtResume.TAKEN
    assert is_refused(Change("model.of_a_later_version", None, 1)), "it may be another network"


@pytest.fixture(scope="module")
def half_way(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in FP16 that was stopped half-way, by its number of tokens."""
    run_dir = tmp_path_factory.mktemp("fields") / "run"
    succeed(1, recipe, f"run_dir={run_dir}", "train.precision=fp16", "train.train_tokens=1280")
    return run_dir


def resumed(recipe: Path, run_dir: Path, *overrides: str) -> dict[str, Any]:
    program = [Path(__file__).with_name("resumed_options.py"), recipe, f"run_dir={run_dir}", "train.precision=fp16"]
    done = run_program(1, [*program, *overrides])
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


@pytest.mark.parametrize("distributed", [True, False])
def test_what_the_recipe_sets_is_taken_and_not_what_the_checkpoint_holds(
    recipe: Path, half_way: Path, tmp_path: Path, distributed: bool
) -> None:
    steps = sorted(int(path.name[5:]) for path in (half_way / "checkpoints").glob("step_*"))
    run_dir = start_from(half_way, steps[-1], tmp_path / "run")
    layout = f"parallel.use_distributed_optimizer={str(distributed).lower()}"
    before = resumed(recipe, shutil.copytree(run_dir, tmp_path / "as it was"), layout)
    after = resumed(recipe, run_dir, layout, *(f"{name}={value}" for name, value in CHANGED.items()))
    assert after["options"] == pytest.approx(CHANGED)
    assert not any(before["options"][name] == pytest.approx(value) for name, value in CHANGED.items())
    assert after["scale"] == before["scale"], "only its bounds have changed"
    assert after["rates"] == before["rates"]


def test_where_a_run_stops_does_not_bend_its_schedule(recipe: Path, half_way: Path, tmp_path: Path) -> None:
    steps = sorted(int(path.name[5:]) for path in (half_way / "checkpoints").glob("step_*"))
    start = start_from(half_way, steps[-1], tmp_path / "run")
    whole, earlier, cut = (
        resumed(recipe, shutil.copytree(start, tmp_path / name), *overrides)["rates"]
        for name, overrides in (
            ("whole", ["train.train_tokens=null"]),
            ("earlier", ["train.train_tokens=1400"]),
            ("cut", ["optimizer.schedule_tokens=4000"]),
        )
    )
    assert whole == earlier
    ended = 4000 // EVERY_TOKENS + 1
    assert set(cut[ended:]) == {cut[ended]} and cut != whole
