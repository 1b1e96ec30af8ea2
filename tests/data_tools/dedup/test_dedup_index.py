"""Incrementally: what an index holds stays, and of the new documents what one run over all would keep."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_tools.dedup.deduplicate import deduplicate
from data_tools.dedup.keepers import Rules
from data_tools.dedup.request import Request, make_recipe
from data_tools.engines.local import LocalEngine
from data_tools.steps.datasets import reading_settings
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows
from tests.helpers.files.near_copies import real_documents, with_near_copies


def dedup(*inputs: str, output: Path, **options: Any) -> dict[str, Any]:
    request = Request(inputs, output, **{"max_removed": 1.0, "task_bytes": 100_000, **options})
    return deduplicate(request, reading_settings(), LocalEngine(1))


def numbers(folder: Path) -> list[int]:
    return [row["n"] for row in pq.read_table(folder).to_pylist()]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts of one collection; copies are spread over them."""
    folder = tmp_path_factory.mktemp("parts")
    texts = with_near_copies(real_documents(600, 150), every=1, seed=3)
    for part in range(3):
        rows = [{"text": text, "n": n} for n, text in enumerate(texts) if n % 3 == part]
        write_rows(folder / f"{part}.jsonl", rows)
    return folder


@pytest.mark.parametrize("across", [False, True])
def test_two_steps_keep_what_one_run_with_priority_keeps(tmp_path: Path, parts: Path, across: bool) -> None:
    rules = Rules(across=across)
    # Within a dataset its parts have one name; the earlier part is first in any case.
    names = ("old", "new") if across else ("web", "web")
    dedup(f"{names[0]}={parts / '0.jsonl'}", output=tmp_path / "old", index=tmp_path / "index", rules=rules)
    report = dedup(
        f"{names[1]}={parts / '1.jsonl'}", output=tmp_path / "new", against=(tmp_path / "index",), rules=rules
    )
    both = [f"old={parts / '0.jsonl'}", f"new={parts / '1.jsonl'}"]
    dedup(*both, output=tmp_path / "both", rules=Rules(across=True))
    expected = [n for n in numbers(tmp_path / "both/documents") if n % 3 == 1]
    assert numbers(tmp_path / "new/documents") == expected
    assert 0 < report["datasets"][names[1]]["removed"] == len(numbers(tmp_path / "new/dropped"))
    gone = pq.read_table(tmp_path / "new/dropped").to_pylist()
    assert {row["duplicate_in"] for row in gone} == {f"index/{names[0]}", names[1]}


def test_indexes_add_up(tmp_path: Path, parts: Path) -> None:
    dedup(f"web={parts / '0.jsonl'}", output=tmp_path / "0", index=tmp_path / "i0")
    dedup(f"web={parts / '1.jsonl'}", output=tmp_path / "1", index=tmp_path / "i1", against=(tmp_path / "i0",))
    dedup(f"web={parts / '2.jsonl'}", output=tmp_path / "2", against=(tmp_path / "i0", tmp_path / "i1"))
    words = [f"{part}={parts / f'{part}.jsonl'}" for part in range(3)]
    dedup(*words, output=tmp_path / "all", rules=Rules(across=True))
    for part in range(3):
        assert numbers(tmp_path / str(part) / "documents") == numbers(tmp_path / "all/documents" / str(part))


def test_nothing_of_the_same_again_stays(tmp_path: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dedup(f"web={parts / '0.jsonl'}", output=tmp_path / "old", index=tmp_path / "index")
    shutil.copy(parts / "0.jsonl", tmp_path / "again.jsonl")
    report = dedup(f"web={tmp_path / 'again.jsonl'}", output=tmp_path / "new", against=(tmp_path / "index",))
    assert report["datasets"]["web"]["removed"] == len(numbers(tmp_path / "new/dropped"))
    assert len(numbers(tmp_path / "new/documents")) == 0
    # A dataset of another name is another one, which is said.
    assert "warning" not in capsys.readouterr().err
    other = dedup(f"wiki={tmp_path / 'again.jsonl'}", output=tmp_path / "wiki", against=(tmp_path / "index",))
    assert re.search(
        "warning: --against .*/index: has the dataset web, and this run the dataset wiki; nothing is compared",
        capsys.readouterr().err,
    )
    alone = dedup(f"wiki={tmp_path / 'again.jsonl'}", output=tmp_path / "alone")
    assert other["datasets"] == alone["datasets"]


def test_an_index_is_made_again_where_it_is_gone_and_never_over_something_else(tmp_path: Path, parts: Path) -> None:
    words = (f"web={parts / '0.jsonl'}",)
    dedup(*words, output=tmp_path / "out", index=tmp_path / "index")
    seal = (tmp_path / "index/manifest.json").read_bytes()
    before = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "index")
    dedup(*words, output=tmp_path / "out", index=tmp_path / "index")
    assert (tmp_path / "index/manifest.json").read_bytes() == seal
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == before
    assert not (tmp_path / "out.work").exists()
    with pytest.raises(UserError, match="holds an index of deduplication already"):
        dedup(f"web={parts / '1.jsonl'}", output=tmp_path / "other", index=tmp_path / "index")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(UserError, match="is not an index of deduplication"):
        dedup(*words, output=tmp_path / "third", index=tmp_path / "mine")


def test_what_does_not_fit_an_index_is_one_line(tmp_path: Path, parts: Path) -> None:
    shutil.copy(parts / "0.jsonl", tmp_path / "old.jsonl")
    dedup(f"web={tmp_path / 'old.jsonl'}", output=tmp_path / "old", index=tmp_path / "index")
    new: dict[str, Any] = {"output": tmp_path / "new", "against": (tmp_path / "index",)}
    word = f"web={parts / '1.jsonl'}"
    with pytest.raises(UserError, match=r"was made with --ngram 5, not 7"):
        dedup(word, recipe=make_recipe(None, ngram=7), **new)
    with pytest.raises(UserError, match=r"was made without --exact-only"):
        dedup(word, exact_only=True, **new)
    with pytest.raises(UserError, match=r"is named twice"):
        dedup(word, output=tmp_path / "new", against=(tmp_path / "index", tmp_path / "index"))
    (tmp_path / "old.jsonl").touch()
    with pytest.raises(UserError, match=r"old\.jsonl: of the index .* is gone or was changed"):
        dedup(word, **new)
    assert not (tmp_path / "new").exists()
    # Where candidates are not checked, no text is needed again.
    dedup(word, recipe=make_recipe(None, verify=False), **new)
    bands = next((tmp_path / "index").glob("*.bands"))
    bands.write_bytes(bands.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"\.bands: is missing or damaged"):
        dedup(word, output=tmp_path / "third", against=(tmp_path / "index",))
