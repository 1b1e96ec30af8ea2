from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.calibration import BINS, Answer, calibration, calibrations
from megatron_kaiyuan.evaluate.measures import Measures
from megatron_kaiyuan.evaluate.results import read_entries
from megatron_kaiyuan.evaluate.run import evaluate
from megatron_kaiyuan.evaluate.summary import summary_line
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from megatron_kaiyuan.export.loading import load_network, load_tokenizer
from tests.helpers.training.local_tasks import DOCUMENTS, write_tasks
from tests.helpers.training.tiny_model import write_model


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.booleans()), min_size=1, max_size=200))
def test_figures_are_those_of_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    # Its bins have their lower end, ours their upper one: on an edge the two may differ.
    pairs = [
        (confidence, right) for confidence, right in pairs if abs(confidence * BINS - round(confidence * BINS)) > 1e-6
    ]
    if not pairs:
        return
    confidences, right = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    accuracies, means = calibration_curve(right, confidences, n_bins=BINS)
    counts = np.histogram(confidences, BINS, (0, 1))[0]
    found = calibration([Answer(*pair) for pair in pairs])
    assert [one["items"] for one in found["bins"]] == counts[counts > 0].tolist()
    assert [one["accuracy"] for one in found["bins"]] == pytest.approx(accuracies)
    assert [one["confidence"] for one in found["bins"]] == pytest.approx(means)
    error = (counts[counts > 0] / counts.sum() * abs(accuracies - means)).sum()
    assert found["expected_calibration_error"] == pytest.approx(error)
    assert found["accuracy"] == pytest.approx(right.mean()) and found["confidence"] == pytest.approx(confidences.mean())
    assert found["items"] == len(pairs)


def test_known_cases() -> None:
    sure_and_right = calibration([Answer(1.0, True)] * 3)
    assert sure_and_right["expected_calibration_error"] == 0
    assert sure_and_right["bins"] == [{"from": 0.9, "to": 1.0, "items": 3, "confidence": 1.0, "accuracy": 1.0}]
    assert calibration([Answer(1.0, False)] * 3)["expected_calibration_error"] == 1
    # A coin that says so; an edge belongs to the bin below it.
    coin = calibration([Answer(0.5, True), Answer(0.5, False)])
    assert coin["expected_calibration_error"] == 0 and [one["to"] for one in coin["bins"]] == [0.5]
    # Three of four right at 0.9, one of two at 0.6: 4/6 * 0.15 + 2/6 * 0.1.
    mixed = [Answer(0.9, index > 0) for index in range(4)] + [Answer(0.6, True), Answer(0.6, False)]
    assert calibration(mixed)["expected_calibration_error"] == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and local tasks with one that runs code besides."""
    folder = tmp_path_factory.mktemp("calibration")
    write_model(folder / "model")
    write_tasks(folder / "tasks")
    told = yaml.safe_load((folder / "tasks" / "told.yaml").read_text())
    (folder / "tasks" / "coded.yaml").write_text(yaml.safe_dump({**told, "task": "coded", "unsafe_code": True}))
    return folder


def by_hand(model: Any, requests: list[tuple[str, str]], right: int) -> Answer:
    """Of bytes as tokens: probabilities of texts after contexts in FP64, made to add up to 1."""
    logarithms = []
    for context, text in requests:
        ids = model.tokenizer.encode(context + text)
        with torch.no_grad():
            rows = model.network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        places = range(len(ids) - len(model.tokenizer.encode(text)), len(ids))
        logarithms.append(sum(rows[place - 1, ids[place]].item() for place in places))
    probabilities = np.exp(logarithms) / np.exp(logarithms).sum()
    return Answer(float(probabilities.max()), int(probabilities.argmax()) == right)


def test_answers_of_tasks_are_those_of_a_calculation_by_hand(folder: Path, tmp_path: Path) -> None:
    names = ("options", "contexts", "several", "pair", "last_word", "beyond")
    selection = TaskSelection(names, folder / "tasks")
    result, path = evaluate(folder / "model", Measures(tasks=selection, seq_length=200), tmp_path / "evaluation.json")
    found, metrics = result["model"]["calibration"], result["model"]["tasks"]
    # Of a tag each task; none where nothing is chosen.
    assert found.keys() == {"options", "contexts", "several", "tagged", "beyond"}
    for name in found:
        assert found[name]["accuracy"] == pytest.approx(metrics[name]["acc"])

    model = SimpleNamespace(network=load_network(folder / "model"), tokenizer=load_tokenizer(folder / "model"))
    answers: dict[str, list[Answer]] = {"options": [], "contexts": []}
    for row in DOCUMENTS:
        context, following = f"Question: {row['question']}\nAnswer:", f" and then {row['question']}"
        chosen = [(context, f" {option}") for option in row["options"]]
        answers["options"].append(by_hand(model, chosen, row["right"]))
        chosen = [(option, following) for option in row["options"]]
        answers["contexts"].append(by_hand(model, chosen, row["right"]))
    for name, given_answers in answers.items():
        expected = calibration(given_answers)
        assert found[name]["items"] == expected["items"] == len(DOCUMENTS)
        for figure in ("accuracy", "confidence", "expected_calibration_error"):
            assert found[name][figure] == pytest.approx(expected[figure], abs=1e-4)
        assert len(found[name]["bins"]) == len(expected["bins"]) > 1

    error = found["tagged"]["expected_calibration_error"]
    assert f"tagged calibration error {error:.2f}" in summary_line(result)
    # Another evaluation is added, and what is read back has both.
    others = Measures(tasks=TaskSelection(("letters",), folder / "tasks"), seq_length=200)
    evaluate(folder / "model", others, path)
    (entry,) = read_entries(path)
    assert entry["model"]["calibration"].keys() == {*found, "letters"}
    assert entry["model"]["calibration"]["options"] == json.loads(json.dumps(found["options"]))


def test_answers_of_a_group_are_laid_together() -> None:
    def task(name: str, *scores: list[float]) -> SimpleNamespace:
        """The first choice is the right one."""
        requests = [
            SimpleNamespace(doc_id=number, doc={}, resps=[(score, False)])
            for number, row in enumerate(scores)
            for score in row
        ]
        choices = {"doc_to_choice": lambda doc: ["a", "b"], "doc_to_target": lambda doc: 0, "multiple_input": 0}
        return SimpleNamespace(task_name=name, OUTPUT_TYPE="multiple_choice", instances=requests, **choices)

    # With the scores of choices by themselves after them, as for mutual information.
    tasks = {
        "one": task("one", [0.0, -1.0], [-3.0, 0.0]),
        "two": task("two", [0.0, -2.0, 0.0, 9.0]),
        "three": task("three", [0.0, 0.0]),
    }
    groups = {"all": ["one", "all::inner"], "all::inner": ["two"]}
    found = calibrations(["all", "two"], tasks, groups)
    sure = [1 / (1 + np.exp(-distance)) for distance in (1, 3, 2)]
    everything = [Answer(sure[0], True), Answer(sure[1], False), Answer(sure[2], True)]
    assert found.keys() == {"all", "two", "three"}
    expected = calibration(everything)
    assert found["all"]["items"] == 3 and found["two"]["confidence"] == pytest.approx(sure[2])
    for figure in ("accuracy", "confidence", "expected_calibration_error"):
        assert found["all"][figure] == pytest.approx(expected[figure])


def test_tasks_of_a_preset_have_shots_of_their_own(folder: Path, tmp_path: Path) -> None:
    tasks = folder / "tasks"
    presets = [TaskSelection(("options", "contexts"), tasks, 1), TaskSelection(("last_word",), tasks, 0)]
    measures = Measures(tasks=TaskSelection(("contexts",), tasks, 2), presets=presets, seq_length=200)
    assert [(one.names, one.num_fewshot) for one in measures.selections] == [
        (("contexts",), 2),
        (("options",), 1),
        (("last_word",), 0),
    ]
    result, path = evaluate(folder / "model", measures, tmp_path / "evaluation.json")
    assert result["model"]["tasks"].keys() == {"contexts", "options", "last_word"}
    assert result["model"]["shots"] == {"contexts": 2, "options": 1, "last_word": 0}
    made_from = result["made_from"]
    assert len({made_from[name] for name in result["model"]["tasks"]}) == 3
    # The same shots by name are the same measure; others are not.
    evaluate(folder / "model", Measures(tasks=TaskSelection(("options",), tasks, 1), seq_length=200), path)
    with pytest.raises(UserError, match=r"has options of .* already, measured on other data or with other settings"):
        evaluate(folder / "model", Measures(tasks=TaskSelection(("options",), tasks, 2), seq_length=200), path)


def test_code_runs_only_where_it_is_allowed(folder: Path, tmp_path: Path) -> None:
    selection = TaskSelection(("coded",), folder / "tasks", limit=2)
    with pytest.raises(
        UserError, match=r"'coded': runs code that the model writes; in a sandbox.*--confirm-run-unsafe"
    ):
        evaluate(folder / "model", Measures(tasks=selection, seq_length=100), tmp_path / "evaluation.json")
    allowed = TaskSelection(("coded",), folder / "tasks", limit=2, runs_code=True)
    result, _ = evaluate(folder / "model", Measures(tasks=allowed, seq_length=100), tmp_path / "evaluation.json")
    assert "exact_match" in result["model"]["tasks"]["coded"]
