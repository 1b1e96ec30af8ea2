"""The whole way on real text: corpora from any number of workers, windows, portraits counted again from the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_tools.engines.local import LocalEngine
from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.scores.audit_source import CorpusSource
from data_tools.scores.corpora import CorpusOptions, score_corpora
from data_tools.tokenizers.decoding import CorpusText
from data_tools.windows.cut import cut_windows
from data_tools.windows.options import WindowOptions
from data_tools.windows.portraits import portraits
from megatron_kaiyuan.files import read_sealed_json


def windows_of(folder: Path, harvested: Path, tokenizer: Path, engine: LocalEngine, task: int) -> dict[str, Any]:
    """Windows of a score that an engine made, in `folder`."""
    settings = Settings(tokenizer, score_keys=("score",))
    preprocess(sorted(harvested.glob("*.train.jsonl")), folder / "web", settings, engine, task_bytes=task)
    prefix = folder / "web_text_document"
    score_corpora([str(prefix)], CorpusOptions(["rules"], task_tokens=task), LocalEngine(1))
    options = WindowOptions(["score"], width="0.1", by="tokens", samples=2)
    cut_windows([f"web={prefix}"], options, folder / "windows", threads=engine.workers)
    return read_sealed_json(folder / "windows" / "windows.json", "windows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("windows")


@pytest.fixture(scope="module")
def found(folder: Path, harvested: Path, tokenizer_path: Path) -> dict[str, Any]:
    return windows_of(folder, harvested, tokenizer_path, LocalEngine(1), 0)


def documents(folder: Path, window: dict[str, Any]) -> list[int]:
    words = np.fromfile(folder / "windows" / window["phase"] / "order.bin", "<u8")
    return sorted((words & np.uint64(2**48 - 1)).astype(int).tolist())


def test_a_portrait_is_of_the_documents_of_its_window(folder: Path, found: dict[str, Any]) -> None:
    rows = pq.read_table(folder / "web_text_document.meta.parquet").to_pylist()
    corpus = CorpusText(folder / "web_text_document")
    assert len(found["windows"]) == 6
    for window in found["windows"]:
        mine = documents(folder, window)
        portrait = window["portrait"]
        assert portrait["documents"] == window["phase_documents"] == len(mine)
        assert portrait["bytes"] == pytest.approx(np.mean([rows[at]["bytes"] for at in mine]))
        assert portrait["tokens"] == pytest.approx(np.mean([rows[at]["tokens"] for at in mine]))
        for domain, share in portrait["groups"].items():
            assert share == pytest.approx(np.mean([rows[at]["domain"] == domain for at in mine]))
        assert sum(portrait["groups"].values()) == pytest.approx(1)
        texts = [" ".join(text[:200].split()) for text in corpus.texts(mine)]
        assert len(portrait["samples"]) == 2 and set(portrait["samples"]) <= set(texts)
        scores = [rows[at]["score"] for at in mine]
        assert (
            window["lowest"] <= portrait["from"] == min(scores) and max(scores) == portrait["to"] <= window["highest"]
        )
        assert set(portrait["fails"]) and all(
            share == pytest.approx(np.mean([rows[at][name] == 0 for at in mine]))
            for name, share in portrait["fails"].items()
        )


def test_a_portrait_of_few_is_of_documents_of_the_window(folder: Path, found: dict[str, Any]) -> None:
    source = CorpusSource("web", folder / "web_text_document")
    phases = [folder / "windows" / window["phase"] for window in found["windows"]]
    for portrait, whole in zip(portraits(source, "score", phases, 1, sample=5), found["windows"], strict=True):
        assert (
            portrait["documents"] == min(5, whole["phase_documents"])
            and portrait["samples"] == whole["portrait"]["samples"][:1]
        )


def test_same_windows_for_any_workers_and_size_of_tasks(
    tmp_path: Path, folder: Path, found: dict[str, Any], harvested: Path, tokenizer_path: Path
) -> None:
    assert windows_of(tmp_path, harvested, tokenizer_path, LocalEngine(2), 100_000) == found
    files = {path.relative_to(folder) for path in (folder / "windows").rglob("*") if path.is_file()} - {
        Path("windows", name)
        for name in ("manifest.json", "order.yaml")  # which name the corpus by its path
    }
    for name in files:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
