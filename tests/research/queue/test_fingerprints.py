"""A fingerprint is of all that decides a result, and of nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kaiyuan.research.queue.request import Run
from megatron_kaiyuan.research.queue.task import Tasks
from tests.helpers.training.run_lists import make_run


def fingerprint(run: Run, platform: str = "cpu") -> str:
    tasks = Tasks(Path("queue"))
    return tasks.make(run, tasks.load(run), platform).fingerprint


@pytest.mark.parametrize(
    "override",
    ["monitor.log_every_steps=7", "checkpoint.save_every_steps=3", "checkpoint.keep_last=5", "train.seed=1234"],
)
def test_what_changes_no_result_leaves_it(queue_recipe: Path, override: str) -> None:
    assert fingerprint(make_run(queue_recipe, "other name", override, label=1)) == fingerprint(
        make_run(queue_recipe, "a")
    )


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=2",
        "train.train_tokens=1024",
        "model.num_layers=1",
        "optimizer.adam_beta2=0.9",
        "data.phases.0.peak_lr=1e-3",
        "faults.spike_zscore=null",
        "train.micro_batch_size=1",
    ],
)
def test_what_changes_it_changes_it(queue_recipe: Path, override: str) -> None:
    assert fingerprint(make_run(queue_recipe, "a", override)) != fingerprint(make_run(queue_recipe, "a"))


def test_inputs_count_by_content_and_not_by_place(queue_recipe: Path, tmp_path: Path) -> None:
    run = make_run(queue_recipe, "a")
    moved = tmp_path / "held_out"
    shutil.copytree(run.held_out["code"].parent, moved)
    here = fingerprint(run)
    assert fingerprint(replace(run, held_out={name: moved / name for name in run.held_out})) == here
    exchanged = {"code": run.held_out["prose"], "prose": run.held_out["code"]}
    for other in (exchanged, {"code": run.held_out["code"]}, {}):
        assert fingerprint(replace(run, held_out=other)) != here
    assert fingerprint(replace(run, held_out_tokens=50)) != here
    assert fingerprint(run, "cuda") != here
    # The other phase alone is another run, and a copy of the same one is not.
    phases = queue_recipe.parent / "phases"
    shutil.copytree(phases / "first", phases / "copy")
    assert fingerprint(make_run(queue_recipe, "a", f"data.phases.0.path={phases / 'copy'}")) == here
    assert fingerprint(make_run(queue_recipe, "a", f"data.phases.0.path={phases / 'second'}")) != here
