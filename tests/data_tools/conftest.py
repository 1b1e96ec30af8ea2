"""Real text, a real tokenizer and real processes for the tests of this folder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data_tools.harvesting.harvest import harvest
from data_tools.reading.texts import texts
from data_tools.tokenizers.train_tokenizer import save_tokenizer, train_tokenizer
from tests.helpers.files.json_lines import read_rows, write_rows
from tests.helpers.processes.command import Command
from tests.helpers.processes.rank_server import run


@pytest.fixture(scope="session")
def harvest_as_written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of a megabyte of code and of mathematics."""
    folder = tmp_path_factory.mktemp("harvest")
    list(harvest(folder, megabytes=0.2, held_out=0.1, domains=["code", "math"]))
    return folder


@pytest.fixture(scope="session")
def harvested(harvest_as_written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, each document with a number as its score."""
    folder, draw = tmp_path_factory.mktemp("harvested"), random.Random(7)
    for path in sorted(harvest_as_written.glob("*.jsonl")):
        write_rows(folder / path.name, [{**row, "score": draw.random()} for row in read_rows(path)])
    return folder


@pytest.fixture(scope="session")
def tokenizer_path(harvested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 1,024 ids."""
    files = sorted(harvested.glob("*.train.jsonl"))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(train_tokenizer(lambda: (text for text, _ in texts(files, "text")), 1024), path)
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs `kaiyuan-data` as a process of its own, a fork of one that has imported its modules."""
    return lambda *arguments: run(1, ["-m", "data_tools.cli", *arguments], imported="data")
