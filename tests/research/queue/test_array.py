"""`--engine slurm`: an array of Slurm's, here of a stand-in for sbatch that runs the tasks it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import make_runs

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue import run_all
from megatron_kaiyuan.research.queue.slurm import Array
from tests.train.small_run import events

# sbatch(1): --array=FIRST-LAST, %A_%a in --output, --wrap, --wait, --parsable.
SBATCH = """#!/usr/bin/env bash
for word in "$@"; do
    case "$word" in
        --array=*) range="${word#--array=}" ;;
        --output=*) output="${word#--output=}" ;;
        --wrap=*) script="${word#--wrap=}" ;;
        --bad) echo "sbatch: error: Invalid option" >&2; exit 1 ;;
    esac
done
for task in $(seq "${range%-*}" "${range#*-}"); do
    name="${output//%A/17}"
    SLURM_PROCID=0 SLURM_ARRAY_TASK_ID="$task" bash -c "$script" > "${name//%a/$task}" 2>&1 &
done
wait
echo 17
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    (place / "sbatch").write_text(SBATCH)
    (place / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=":")


@pytest.mark.usefixtures("slurm")
def test_tasks_of_an_array_share_a_list(queue_recipe: Path, tmp_path: Path) -> None:
    runs = make_runs(queue_recipe, 3)
    rows = run_all(tmp_path / "queue", runs, array=Array(2, ("--cpus-per-task=1",)))
    assert [row["name"] for row in rows] == [run.name for run in runs]
    folders = list((tmp_path / "queue" / "runs").iterdir())
    assert len(folders) == 3 and all(len(events(folder, "start")) == 1 for folder in folders)
    assert len(list((tmp_path / "queue" / "slurm").glob("17_*.out"))) == 2


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_told(queue_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sbatch refused the job: sbatch: error: Invalid option"):
        run_all(tmp_path / "queue", make_runs(queue_recipe, 1), array=Array(1, ("--bad",)))


def test_without_slurm_it_is_told(queue_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch was not found"):
        run_all(tmp_path / "queue", make_runs(queue_recipe, 1), array=Array(1))
