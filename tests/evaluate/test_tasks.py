from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.tasks import CHOICES, CONTINUATION, ROLLING, TaskSizes, read_domains, write_tasks
from tests.helpers.training.tiny_model import write_text

SIZES = TaskSizes(documents=6, document_characters=200, items=10, context_characters=60, continuation_characters=30)


def rows(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_items_come_from_the_text_and_from_every_domain(tmp_path: Path) -> None:
    files = [write_text(tmp_path / f"{name}.jsonl", name, 12, 60, seed) for seed, name in enumerate(("a", "b"))]
    documents = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    texts = {document["text"]: document["domain"] for document in documents}
    counts = write_tasks(files, tmp_path / "tasks", SIZES, seed=1)

    assert counts == {ROLLING: 6, CONTINUATION: 10}
    assert [row["domain"] for row in rows(tmp_path / "tasks", ROLLING)] == ["a"] * 3 + ["b"] * 3
    for row in rows(tmp_path / "tasks", CONTINUATION):
        assert len(set(row["choices"])) == CHOICES
        own = [text for text in texts if text.startswith(row["context"])]
        assert len(own) == 1 and texts[own[0]] == row["domain"]
        assert own[0][len(row["context"]) :].startswith(row["choices"][row["gold"]])
        for index, choice in enumerate(row["choices"]):
            holders = {texts[text] for text in texts if choice in text and (index == row["gold"] or text != own[0])}
            assert row["domain"] in holders
    gold = {row["gold"] for row in rows(tmp_path / "tasks", CONTINUATION)}
    assert len(gold) > 1, "the right answer must not always be in one place"


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    files = [write_text(tmp_path / "a.jsonl", "a", 30, 60, seed=1)]

    def data(folder: str, seed: int) -> bytes:
        write_tasks(files, tmp_path / folder, SIZES, seed)
        return (tmp_path / folder / f"{CONTINUATION}.jsonl").read_bytes()

    assert data("one", 7) == data("two", 7) != data("three", 8)


def test_data_files_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tasks([write_text(tmp_path / "a.jsonl", "a", 9, 60, seed=1)], Path("tasks"), SIZES, seed=1)
    task = yaml.safe_load((tmp_path / "tasks" / f"{ROLLING}.yaml").read_text())
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "tasks" / f"{ROLLING}.jsonl")


def test_short_text_makes_the_rolling_task_only(tmp_path: Path) -> None:
    file = write_text(tmp_path / "a.jsonl", "a", 3, 4, seed=1)
    assert write_tasks([file], tmp_path / "tasks", SIZES, seed=1) == {ROLLING: 3}


@pytest.mark.parametrize("line", ["{", "[1]", '{"domain": "a"}', '{"text": 3, "domain": "a"}', "null"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good", "domain": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2"):
        write_tasks([tmp_path / "bad.jsonl"], tmp_path / "tasks", SIZES, seed=1)


def test_missing_or_empty_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: held-out text cannot be read"):
        write_tasks([tmp_path / "none.jsonl"], tmp_path / "tasks", SIZES, seed=1)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: no text"):
        write_tasks([tmp_path / "empty.jsonl"], tmp_path / "tasks", SIZES, seed=1)
    assert not (tmp_path / "tasks").exists()


def test_a_byte_order_mark_is_no_part_of_held_out_text(tmp_path: Path):
    path = tmp_path / "math.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert read_domains([path]) == {"math": ["one"]}
