"""`--engine slurm`: an array of Slurm's, here of stand-ins for its commands. With its daemons: test_slurm_queue.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue import run_all
from megatron_kaiyuan.research.queue.slurm import Array
from tests.helpers.training.run_lists import make_run, make_runs
from tests.helpers.training.small_run import events

# sbatch(1): --array=FIRST-LAST, %A_%a in --output, --wrap, --parsable. It returns at once; tasks run after it.
SBATCH = """#!/usr/bin/env bash
here="$(dirname "$0")"
echo "$@" >>"$here/submitted"
for word in "$@"; do
    case "$word" in
        --array=*) range="${word#--array=}" ;;
        --output=*) output="${word#--output=}" ;;
        --wrap=*) script="${word#--wrap=}" ;;
        --bad) echo "sbatch: error: Invalid option" >&2; exit 1 ;;
    esac
done
for task in $(seq "${range%-*}" "${range#*-}"); do
    touch "$here/running.$task"
    name="${output//%A/17}"
    (
        SLURM_PROCID=0 SLURM_ARRAY_JOB_ID=17 SLURM_ARRAY_TASK_ID="$task" bash -c "$script" >"${name//%a/$task}" 2>&1
        rm "$here/running.$task"
    ) >/dev/null 2>&1 &
done
echo "17;cluster"
"""
# squeue(1) with --noheader: a line for each task; a job that is forgotten is an error.
SQUEUE = """#!/usr/bin/env bash
ls "$(dirname "$0")"/running.* 2>/dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins, where `submitted` holds the words that sbatch got."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", "#!/bin/sh\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=":")
    return place


def test_tasks_of_an_array_share_a_list(slurm: Path, queue_recipe: Path, tmp_path: Path) -> None:
    runs = make_runs(queue_recipe, 3)
    rows = run_all(tmp_path / "queue", runs, array=Array(2, ("--cpus-per-task=1", "--comment=two words")))
    assert [row["name"] for row in rows] == [run.name for run in runs]
    folders = list((tmp_path / "queue" / "runs").iterdir())
    assert len(folders) == 3 and all(len(events(folder, "start")) == 1 for folder in folders)
    assert len(list((tmp_path / "queue" / "slurm").glob("17_*.out"))) == 2
    assert "--array=0-1 " in (slurm / "submitted").read_text()
    assert "--cpus-per-task=1 --comment=two words" in (slurm / "submitted").read_text()

    # What is whole needs no array, and a new run no more tasks than one.
    assert run_all(tmp_path / "queue", runs, array=Array(2)) == rows
    assert len((slurm / "submitted").read_text().splitlines()) == 1
    run_all(tmp_path / "queue", [*runs, make_run(queue_recipe, "new", "train.seed=7")], array=Array(2))
    assert "--array=0-0 " in (slurm / "submitted").read_text().splitlines()[1]


def test_a_mistake_is_found_before_anything_is_submitted(slurm: Path, queue_recipe: Path, tmp_path: Path) -> None:
    for override, message in [
        ("train.sed=1", "run 'bad': .*train.sed: unknown field"),
        # A machine without devices would look for other results than the tasks on a node with devices write.
        ("platform=auto", "--engine slurm: the recipe's platform is auto"),
    ]:
        with pytest.raises(UserError, match=message):
            run_all(tmp_path / "queue", [make_run(queue_recipe, "bad", override)], array=Array(1))
    assert not (slurm / "submitted").exists()


def test_what_slurm_refuses_is_told(slurm: Path, queue_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sbatch refused the job: sbatch: error: Invalid option"):
        run_all(tmp_path / "queue", make_runs(queue_recipe, 1), array=Array(1, ("--bad",)))


def test_without_slurm_it_is_told(queue_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch was not found"):
        run_all(tmp_path / "queue", make_runs(queue_recipe, 1), array=Array(1))
