"""Bits per byte of right answers, against probabilities by hand and items by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.cloze import ClozeTask, Item, cloze_tasks, lengths, measure, read_task, write_task
from megatron_kaiyuan.evaluate.lm_eval_model import lm_eval_model
from megatron_kaiyuan.evaluate.predictor import predictor_of_transformers
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from megatron_kaiyuan.export.loading import load_network, load_tokenizer
from megatron_kaiyuan.files import write_sealed_json
from tests.helpers.training.local_tasks import DOCUMENTS, write_tasks
from tests.helpers.training.tiny_model import write_model, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def items(folder: Path, name: str, **selected: Any) -> tuple[Item, ...]:
    (task,) = cloze_tasks(TaskSelection((name,), folder, **selected))
    return task.items


def bits_by_hand(model: Path, item: Item) -> float:
    """One forward pass, softmax in float64; every byte is a token of this tokenizer."""
    context, answer = item.context.encode(), item.answer.encode()
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(item.context + item.answer)
    assert len(ids) == len(context) + len(answer)
    # Where nothing stands before the answer it follows the end of another text.
    ids = ids if context else [tokenizer.eos_token_id, *ids]
    with torch.no_grad():
        rows = load_network(model)(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(len(ids) - len(answer), len(ids))
    return -sum(rows[place - 1, ids[place]].item() for place in places) / math.log(2)


def test_items_are_the_right_answers_texts(folder: Path) -> None:
    assert items(folder, "options") == tuple(
        Item(f"Question: {row['question']}\nAnswer:", f" {row['options'][row['right']]}") for row in DOCUMENTS
    )
    assert items(folder, "last_word", limit=2) == (
        Item("Which one is number 0? It is", " one"),
        Item("Which one is number 1? It is", " b"),
    )
    # The right context, and what all contexts are followed by.
    assert items(folder, "contexts", limit=2) == (
        Item("one", " and then Which one is number 0?"),
        Item("b", " and then Which one is number 1?"),
    )


@pytest.mark.parametrize("name", ["options", "last_word", "contexts"])
def test_the_measure_is_all_bits_over_all_bytes(folder: Path, model: Path, name: str) -> None:
    (task,) = cloze_tasks(TaskSelection((name,), folder))
    network = predictor_of_transformers(load_network(model))
    found = measure(lm_eval_model(network, load_tokenizer(model), 256), task)
    size = sum(len(item.answer[1:].encode()) for item in task.items)
    assert task.bytes == size
    assert found == pytest.approx(sum(bits_by_hand(model, item) for item in task.items) / size, rel=1e-5)


def test_an_answer_without_a_context_follows_the_end_of_a_text(model: Path) -> None:
    task = ClozeTask("alone", (Item("", "abc"),))
    network = predictor_of_transformers(load_network(model))
    found = measure(lm_eval_model(network, load_tokenizer(model), 256), task)
    assert found == pytest.approx(bits_by_hand(model, task.items[0]) / 3, rel=1e-5)


def test_examples_stand_before_the_question_and_are_not_scored(folder: Path, model: Path) -> None:
    plain, shots = items(folder, "options", limit=3), items(folder, "options", limit=3, num_fewshot=2)
    assert [item.answer for item in shots] == [item.answer for item in plain]
    for with_examples, without in zip(shots, plain, strict=True):
        assert with_examples.context.endswith(without.context)
        assert with_examples.context.count("Question: ") == 3 and without.context.count("Question: ") == 1
    # The same examples at each call.
    assert items(folder, "options", limit=3, num_fewshot=2) == shots


def test_a_tag_is_all_of_its_tasks_together(folder: Path) -> None:
    both = items(folder, "tagged", limit=2) + items(folder, "tagged_too", limit=2)
    assert sorted(items(folder, "pair", limit=2), key=repr) == sorted(both, key=repr)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("letters", "'letters': its answers are the labels A, B, C, .* such as letters_continuation$"),
        ("numbers", "'numbers': its answers are the labels 1, 2, 3, .*options' text$"),
        ("told", "'told': its answers are generated, not scored"),
        ("running", "'running': it scores running text, not answers; make a held-out corpus of it"),
        ("several", r"'several': document 0 has \[0, 1\] as its right answer"),
        ("beyond", "'beyond': document 1 has 3 as its right answer, not one of its 3 choices"),
        ("empty", "'empty': document 0 has no text as its right answer"),
        ("no_data", r"'no_data': cannot be loaded \(FileNotFoundError: .*/nonexistent/data.jsonl"),
        ("unknown", "'unknown': is not among the tasks of lm-eval [0-9.]+ and of include_path"),
    ],
)
def test_what_cannot_be_scored_is_named(folder: Path, name: str, message: str, request: pytest.FixtureRequest) -> None:
    selection = TaskSelection((name,), folder)
    if name == "unknown":
        # lm-eval's thousands of tasks would be read first, which takes a while.
        from lm_eval.tasks import TaskManager

        from megatron_kaiyuan.evaluate.task_selection import load_tasks

        with pytest.raises(UserError, match=message):
            load_tasks(selection, TaskManager(include_path=str(folder), include_defaults=False))
        return
    with pytest.raises(UserError, match=message):
        cloze_tasks(selection)


@pytest.mark.slow
def test_lm_evals_own_form_with_letters_is_refused_before_its_data_are_fetched() -> None:
    """Reads lm-eval's 14,000 YAML files; the data of 57 tasks are on a hub, which is not asked."""
    message = "'mmlu': its answers are the labels A, B, C, D, .*, such as mmlu_continuation$"
    with pytest.raises(UserError, match=message):
        cloze_tasks(TaskSelection(("mmlu",)))


def test_more_examples_than_there_are_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match="'options': cannot be loaded"):
        items(folder, "options", num_fewshot=100)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"include_path: .*gone is not a folder"):
        cloze_tasks(TaskSelection(("options",), tmp_path / "gone"))


def test_lengths_say_what_is_cut_and_refuse_what_does_not_fit(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    task = ClozeTask("task", (Item("12345", " 67"), Item("", "abc")))
    found = lengths(task, tokenizer, 256)
    assert (found.tokens, found.cut) == (8 + 1 + 3, 0)
    # The last token is predicted and not read, so that 8 tokens are no more than 7 inputs.
    assert lengths(task, tokenizer, 7).cut == 0
    cut = lengths(task, tokenizer, 5)
    assert (cut.tokens, cut.cut) == (6 + 4, 1)
    with pytest.raises(UserError, match=r"'task': the right answer of document 0 has 3 tokens, .* reads 1 to 2"):
        lengths(task, tokenizer, 2)


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(model: Path) -> None:
    network = predictor_of_transformers(load_network(model))
    small = type(network)(network.logits, 200, network.device)
    with pytest.raises(UserError, match="has 257 ids, but the network only 200"):
        lm_eval_model(small, load_tokenizer(model), 256)


def test_the_same_items_are_the_same_file(folder: Path, tmp_path: Path) -> None:
    selection = TaskSelection(("options",), folder)
    (task,) = cloze_tasks(selection)
    path = write_task(task, tmp_path)
    assert read_task(path) == task and write_task(task, tmp_path) == path
    # Everything that changes what is scored: YAML, data, examples, limit.
    others = [
        cloze_tasks(TaskSelection(("options",), folder, num_fewshot=1)),
        cloze_tasks(TaskSelection(("options",), folder, limit=5)),
        cloze_tasks(TaskSelection(("letters_continuation",), write_tasks(tmp_path / "data", DOCUMENTS[::-1]))),
    ]
    assert len({task.identity, *(one.identity for (one,) in others)}) == 4
    path.write_text(path.read_text().replace("number 3", "number 4"))
    with pytest.raises(UserError, match="damaged"):
        read_task(path)
    whole = {"format": "kaiyuan-cloze-task", "name": "options", "items": [{"context": "", "answer": " a"}]}
    write_sealed_json(tmp_path / "other.json", {**whole, "format": "else"})
    with pytest.raises(UserError, match=r"other\.json: is not a task in cloze form"):
        read_task(tmp_path / "other.json")
    for field, value in (("name", 3), ("items", []), ("items", [{"context": "", "answer": " "}])):
        write_sealed_json(tmp_path / "other.json", {**whole, field: value})
        with pytest.raises(UserError, match=rf"other\.json: a field is missing or wrong \({field}"):
            read_task(tmp_path / "other.json")
