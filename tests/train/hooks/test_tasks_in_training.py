"""Tasks while a run trains are those of `kaiyuan eval` on its checkpoints; training does not feel them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.run import Measures, evaluate
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from tests.helpers.training.layouts import LAYOUTS, on_layouts
from tests.helpers.training.local_tasks import write_tasks
from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import fit_here, metrics, start_from, succeed, train, write_recipe_and_tokenizer

NAMES = ["options", "letters", "told"]
BASE = ["model.vocab_size=257", "train.train_tokens=2048"]
FIELDS = {"names": NAMES, "limit": 6, "num_fewshot": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks_in_training")
    write_tasks(folder / "tasks")
    write_recipe_and_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def silent(folder: Path) -> Path:
    """The run without tasks."""
    fit_here(folder / "train.yaml", *BASE, f"run_dir={folder / 'silent'}")
    return folder / "silent"


def asked(folder: Path, name: str, **options: Any) -> list[str]:
    places = {"tokenizer": str(folder / "tokenizer"), "include_path": str(folder / "tasks")}
    fields = {**FIELDS, **places, **options}
    return [
        *BASE,
        f"run_dir={folder / name}",
        *(f"tasks.{field}={json.dumps(value)}" for field, value in fields.items()),
    ]


def figures(run_dir: Path) -> dict[int, dict[str, float]]:
    """Columns of tasks, by step."""
    found = {}
    for step, row in metrics(run_dir).items():
        if columns := {name: value for name, value in row.items() if name.startswith("tasks/")}:
            found[step] = columns
    return found


def trained(run_dir: Path) -> dict[int, list[float]]:
    return {step: [row[name] for name in ("loss", "grad_norm", "lr")] for step, row in metrics(run_dir).items()}


def evaluated(folder: Path, run_dir: Path, output: Path, step: int) -> dict[str, float]:
    """The same of a checkpoint."""
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    selection = TaskSelection(tuple(NAMES), folder / "tasks", num_fewshot=1, limit=6)
    with single_process(device):
        result, _ = evaluate(run_dir, Measures(tasks=selection), output, step=step, tokenizer=folder / "tokenizer")
    return {
        f"tasks/{task}_{name}": value for task, row in result["model"]["tasks"].items() for name, value in row.items()
    }


def test_figures_of_checkpoints_and_not_a_bit_of_training_is_another(
    folder: Path, silent: Path, tmp_path: Path
) -> None:
    fit_here(folder / "train.yaml", *asked(folder, "measured", every_steps=2))
    found = figures(folder / "measured")
    assert found.keys() == {2, 4} and {"tasks/options_acc", "tasks/told_exact_match"} <= found[2].keys()
    for step in (2, 4):
        assert found[step] == pytest.approx(
            evaluated(folder, folder / "measured", tmp_path / f"{step}.json", step), rel=1e-4
        )
        assert_same_state(*(run / "checkpoints" / f"step_{step}" for run in (silent, folder / "measured")))
    assert trained(silent) == trained(folder / "measured")
    # Asked for at a resume: after each step that passes a multiple of 700 tokens, and the last one.
    start_from(silent, 2, folder / "resumed")
    fit_here(folder / "train.yaml", *asked(folder, "resumed", names=["options"], every_tokens=700))
    resumed = figures(folder / "resumed")
    assert resumed.keys() == {3, 4}
    assert resumed[4] == {name: value for name, value in found[4].items() if name.startswith("tasks/options_")}
    assert_same_state(*(run / "checkpoints" / "step_4" for run in (silent, folder / "resumed")))


@on_layouts("overlapped", slow=("both", "virtual"))
def test_on_many_ranks(folder: Path, tmp_path: Path, layout: str) -> None:
    ranks, fields = LAYOUTS[layout]
    succeed(ranks, folder / "train.yaml", *asked(folder, layout), *fields)
    found = figures(folder / layout)
    assert found.keys() == {2, 4}
    assert found[4] == pytest.approx(evaluated(folder, folder / layout, tmp_path / "4.json", 4), rel=1e-4)
    succeed(ranks, folder / "train.yaml", *BASE, f"run_dir={tmp_path / 'silent'}", *fields)
    assert_same_state(*(run / "checkpoints" / "step_4" for run in (tmp_path / "silent", folder / layout)))


def test_a_run_that_cannot_do_them_does_not_start(folder: Path) -> None:
    for options, message in (
        ({"names": ["no_such_task"]}, "task 'no_such_task': is not among the tasks of lm-eval"),
        ({"names": ["no_data"]}, "task 'no_data': cannot be loaded"),
        ({"tokenizer": str(folder / "nowhere")}, "tokenizer.json: tokenizer not found"),
    ):
        done = train(1, folder / "train.yaml", *asked(folder, "wrong", **options))
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
        assert not (folder / "wrong" / "checkpoints").exists()


def test_a_task_that_fails_on_its_data_does_not_end_the_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    # 256 tokens are asked for, more than the context.
    fit_here(folder / "train.yaml", *asked(folder, "failing", names=["told_at_length"]))
    assert figures(folder / "failing") == {}
    assert "lm-eval stopped (AssertionError" in caplog.text and "training continues" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tasks.tokenizer=null", "tasks.names need tasks.tokenizer"),
        ("tasks.every_tokens=4096", "tasks.every_steps and tasks.every_tokens: set one of them"),
    ],
)
def test_wrong_fields_are_named(folder: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_run(folder / "train.yaml", [*asked(folder, "wrong", every_steps=2), change])
