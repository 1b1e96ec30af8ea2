"""`kaiyuan eval` on several ranks gives the figures of one, whatever the layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.files import checksum
from tests.helpers.processes.rank_server import run
from tests.helpers.training.local_tasks import write_tasks
from tests.helpers.training.small_run import succeed, write_corpus, write_recipe
from tests.helpers.training.tiny_model import write_text, write_tokenizer

TENSOR, PIPELINE = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
TASKS = ["options", "last_word", "letters", "told", "running"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on two tensor ranks, and what it is measured on."""
    folder = tmp_path_factory.mktemp("on_ranks")
    write_tokenizer(folder / "tokenizer")
    fingerprint = checksum(folder / "tokenizer" / "tokenizer.json")
    recipe = write_recipe(folder, fingerprint=fingerprint)
    shape = ["model.vocab_size=257", "model.num_layers=4", "model.num_query_groups=4"]
    succeed(2, recipe, *shape, "train.train_tokens=1024", "parallel.tensor_model_parallel_size=2")
    write_corpus(folder / "held_out" / "code", documents=9, seed=1, fingerprint=fingerprint)
    write_corpus(folder / "held_out" / "text", documents=4, seed=2, fingerprint=fingerprint)
    write_tasks(folder / "tasks")
    write_text(folder / "text.jsonl", "text", 6, 30, seed=1)
    return folder


def measured(inputs: Path, output: Path, ranks: int, *options: object) -> dict[str, Any]:
    corpora = [inputs / "held_out" / name for name in ("code", "text")]
    program = ["-m", "megatron_kaiyuan.cli", "eval", inputs / "run", "--held-out", *corpora, "--device", "cpu"]
    program += ["--tasks", *TASKS, "--include-path", inputs / "tasks", "--tokenizer", inputs / "tokenizer"]
    program += ["--held-out-text", inputs / "text.jsonl", "--output", output, *options]
    done = run(ranks, program, imported="evaluation")
    assert done.returncode == 0, done.stderr[-3000:]
    # Rank 0 alone speaks, and writes.
    assert done.stdout.count("eval: ") == 1 and done.stderr.count("evaluate: ") == 1
    return dict(json.loads(output.read_text()))


@pytest.fixture(scope="module")
def alone(inputs: Path) -> dict[str, Any]:
    return measured(inputs, inputs / "alone.json", 1)


@pytest.mark.parametrize(
    "ranks, tensor, pipeline",
    [
        (2, 1, 1),
        (2, 1, 2),
        pytest.param(2, 2, 1, marks=pytest.mark.slow),
        pytest.param(4, 2, 2, marks=pytest.mark.slow),
        pytest.param(4, 2, 1, marks=pytest.mark.slow),
        pytest.param(4, 1, 4, marks=pytest.mark.slow),
        pytest.param(3, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_every_layout_gives_the_same_figures(
    inputs: Path, alone: dict[str, Any], tmp_path: Path, ranks: int, tensor: int, pipeline: int
) -> None:
    found = measured(inputs, tmp_path / "found.json", ranks, TENSOR, tensor, PIPELINE, pipeline)
    mine, one = found["model"], alone["model"]
    assert mine["held_out"]["nats_per_token"] == pytest.approx(one["held_out"]["nats_per_token"], abs=1e-6)
    assert mine["held_out"]["tokens"] == one["held_out"]["tokens"]
    for domain, figures in one["held_out"]["domains"].items():
        # Documents of the small corpora count a byte each: bits per byte are hundreds.
        assert mine["held_out"]["domains"][domain] == pytest.approx(figures, abs=1e-6, rel=1e-8)
    assert mine["tasks"].keys() == one["tasks"].keys() >= set(TASKS)
    for task, metrics in one["tasks"].items():
        assert mine["tasks"][task] == pytest.approx(metrics, abs=1e-5), task
        exact = [name for name in metrics if name.startswith(("acc", "exact_match"))]
        assert [mine["tasks"][task][name] for name in exact] == [metrics[name] for name in exact]
    assert found["items"] == alone["items"] and found["items"]["options"] == 12


def test_mistakes_are_one_line_on_many_ranks(inputs: Path, tmp_path: Path) -> None:
    program = ["-m", "megatron_kaiyuan.cli", "eval", inputs / "run", "--device", "cpu", "--output", tmp_path / "e.json"]
    tasks = ["--tokenizer", inputs / "tokenizer", "--include-path", inputs / "tasks", "--tasks"]
    for options, message in (
        ([*tasks, "no_such_task"], "task 'no_such_task': is not among the tasks of lm-eval"),
        ([*tasks, "options", TENSOR, 3], "--tensor-model-parallel-size 3 x --pipeline-model-parallel-size 1: does not"),
    ):
        done = run(2, [*program, *options], imported="evaluation")
        assert done.returncode == 2
        assert done.stderr.count("error: ") == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "e.json").exists()
