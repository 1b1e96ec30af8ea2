"""Results of several evaluations in one file: they add up, and only what would be replaced is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.measures import Measures
from megatron_kaiyuan.evaluate.results import FORMAT, read_entries, refuse_replaced, with_entry
from megatron_kaiyuan.evaluate.run import evaluate
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from megatron_kaiyuan.files import write_json
from tests.helpers.training.local_tasks import write_tasks
from tests.helpers.training.tiny_model import random_documents, write_corpus, write_model


def entry(step: int, held_out: float | None = None, baseline: float | None = None, **tasks: float) -> dict[str, Any]:
    def measured(path: str, loss: float | None) -> dict[str, Any]:
        return {
            "path": path,
            "name": f"run, step {step}",
            "held_out": None if loss is None else {"nats_per_token": loss},
            "tasks": {name: {"acc": value} for name, value in tasks.items()},
            "seconds": 1.5,
        }

    made_from = {"model": f"weights {step}", **dict.fromkeys(tasks, "settings")}
    made_from |= {} if held_out is None else {"held_out": "corpora"}
    made_from |= {} if baseline is None else {"baseline": "untrained"}
    return {
        "model": measured(f"/run/step_{step}", held_out),
        "baseline": None if baseline is None else measured("/run/step_0", baseline),
        "items": {},
        "seed": 1,
        "made_from": made_from,
    }


def add(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    entries = read_entries(path)
    refuse_replaced(path, entries, new)
    write_json(path, with_entry(entries, new))
    return json.loads(path.read_text())


def test_tasks_and_steps_add_up_and_the_newest_step_is_on_top(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    add(path, entry(200, held_out=2.0, baseline=9.0))
    add(path, entry(100, held_out=3.0))
    found = add(path, entry(200, one=0.5))
    assert found["model"]["name"] == "run, step 200" and found["format"] == FORMAT
    assert found["model"]["held_out"] == {"nats_per_token": 2.0} and found["model"]["tasks"] == {"one": {"acc": 0.5}}
    assert found["model"]["seconds"] == 3.0 and found["baseline"]["held_out"] == {"nats_per_token": 9.0}
    assert [other["model"]["name"] for other in found["others"]] == ["run, step 100"]
    found = add(path, entry(300, one=0.6))
    assert [found["model"]["name"], *(other["model"]["name"] for other in found["others"])] == [
        f"run, step {step}" for step in (300, 200, 100)
    ]
    assert found["others"][0]["model"]["tasks"] == {"one": {"acc": 0.5}}


def test_only_what_would_be_replaced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    add(path, entry(200, held_out=2.0, one=0.5))
    assert add(path, entry(200, one=0.5, two=0.7))["model"]["tasks"] == {"one": {"acc": 0.5}, "two": {"acc": 0.7}}
    other = entry(200, held_out=1.0, two=0.1, three=0.2)
    other["made_from"] |= {"held_out": "other corpora"}
    with pytest.raises(UserError, match=r"evaluation\.json: has held_out of run, step 200 already, .* --force"):
        add(path, other)
    retrained = entry(200, four=0.2)
    retrained["made_from"]["model"] = "other weights"
    with pytest.raises(UserError, match="has held_out, one, two of run, step 200 already"):
        add(path, retrained)
    # With --force what was measured on the weights of before is gone.
    assert with_entry(read_entries(path), retrained)["model"]["tasks"] == {"four": {"acc": 0.2}}
    # A run that was moved is known by its weights.
    moved = entry(200, five=0.3)
    moved["model"]["path"] = "/elsewhere/step_200"
    assert set(add(path, moved)["model"]["tasks"]) == {"one", "two", "five"}


def test_a_result_of_an_earlier_version_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    old = entry(200, held_out=2.0, one=0.5)
    del old["made_from"]
    write_json(path, {"format": FORMAT, "identity": "x", **old})
    assert set(add(path, entry(200, two=0.7))["model"]["tasks"]) == {"one", "two"}
    with pytest.raises(UserError, match="has one of"):
        add(path, entry(200, one=0.7))


def test_two_evaluations_of_a_model_and_one_of_another(tmp_path: Path) -> None:
    model, folder, output = write_model(tmp_path / "model"), write_tasks(tmp_path / "tasks"), tmp_path / "found.json"
    corpus = write_corpus(tmp_path / "a_text_document", random_documents(4, seed=1))
    evaluate(model, Measures(tasks=TaskSelection(("options",), folder, limit=4)), output)
    evaluate(model, Measures([corpus], seq_length=32), output)
    evaluate(write_model(tmp_path / "other", seed=1), Measures([corpus], seq_length=32), output)
    found = json.loads(output.read_text())
    entries = {Path(one["model"]["path"]).name: one["model"] for one in (found, *found["others"])}
    assert set(entries) == {"model", "other"} and set(entries["model"]["tasks"]) == {"options"}
    assert entries["model"]["held_out"]["tokens"] == entries["other"]["held_out"]["tokens"] > 0
    assert entries["model"]["held_out"]["nats_per_token"] != entries["other"]["held_out"]["nats_per_token"]
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"has options of .* already"):
        evaluate(model, Measures(tasks=TaskSelection(("options",), folder, limit=3)), output)
    # A mistake in the input comes before a refusal that the user would have met after mending it.
    with pytest.raises(UserError, match="task 'nope': is not among the tasks"):
        evaluate(model, Measures(tasks=TaskSelection(("options", "nope"), folder, limit=3)), output)
    with pytest.raises(UserError, match=r"nowhere\.idx"):
        evaluate(model, Measures([tmp_path / "nowhere"], seq_length=16), output)
    assert output.read_bytes() == before
