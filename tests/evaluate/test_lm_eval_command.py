"""Tasks give what lm-eval's own command gives on the same exported folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_kaiyuan.evaluate.run import Measures, evaluate
from megatron_kaiyuan.evaluate.source import Settings
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from tests.helpers.training.local_tasks import write_tasks
from tests.helpers.training.tiny_model import write_model

NAMES = ("options", "last_word", "letters", "told", "running", "contexts")


def of_lm_eval(model: Path, tasks: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """By its command line, in this process: to import it takes longer than to run it."""
    from lm_eval.__main__ import cli_evaluate

    words = [
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={model},softmax_dtype=float32",
        "--tasks",
        ",".join(NAMES),
    ]
    words += ["--include_path", str(tasks), "--num_fewshot", "2", "--device", "cpu", "--output_path", str(output)]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
    cli_evaluate()
    (written,) = output.rglob("*.json")
    rows = json.loads(written.read_text())["results"]
    return {
        task: {key.split(",")[0]: value for key, value in row.items() if "," in key and "_stderr" not in key}
        for task, row in rows.items()
    }


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_figures_are_those_of_lm_evals_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    model, tasks = write_model(tmp_path / "model"), write_tasks(tmp_path / "tasks")
    if dtype != "float32":
        AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).save_pretrained(model)
    measures = Measures(tasks=TaskSelection(NAMES, tasks, num_fewshot=2))
    expected = of_lm_eval(model, tasks, tmp_path / "theirs", monkeypatch)
    assert expected.keys() == set(NAMES) and expected["told"]["exact_match"] == 0
    # Its batches are of one text: the same sums in the same order.
    one_by_one = Settings(dtype="auto", batch_size=1)
    found, _ = evaluate(model, measures, tmp_path / "one.json", settings=one_by_one)
    for task, metrics in expected.items():
        mine = found["model"]["tasks"][task]
        assert {name: mine[name] for name in metrics} == metrics, task
    if dtype == "float32":
        found, _ = evaluate(model, measures, tmp_path / "batched.json")
        for task, metrics in expected.items():
            mine = found["model"]["tasks"][task]
            assert {name: mine[name] for name in metrics} == pytest.approx(metrics, rel=1e-5), task
