"""A step over documents, and the whole of a command that applies it."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.engines.stage import Engine
from data_tools.steps.datasets import datasets_identity, find_datasets, reading_settings
from data_tools.steps.folder import publish_documents, refuse_bad_rows, stage_of, workplace
from data_tools.steps.schemas import one_schema
from data_tools.steps.shards import ApplySteps
from data_tools.steps.step import drop, steps_identity, with_column
from megatron_kaiyuan.outputs import identity_of


@dataclass(frozen=True)
class DropShort:
    """A step for these tests: the length becomes a column, and short texts go."""

    least: int
    seconds: float = 0.0
    name = "drop short"
    version = 1

    def identity(self) -> dict[str, Any]:
        return {"least": self.least}

    def apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(self.seconds)
        sizes = pc.utf8_length(documents.column("text"))
        reasons = pc.if_else(pc.less(sizes, self.least), "short", None).cast(pa.string())
        return drop(with_column(documents, "characters", sizes), reasons)


def run(
    words: list[str], output: Path, engine: Engine, least: int = 10, bad: int = 0, seconds: float = 0.0
) -> dict[str, Any] | None:
    settings = reading_settings()
    datasets = find_datasets(words, settings, task_bytes=2000)
    shards = [shard for dataset in datasets for shard in dataset.shards]
    steps = (DropShort(least, seconds),)
    identity = identity_of(datasets_identity(datasets), steps_identity(steps, settings), bad)
    with workplace(output, "test", identity, shards, engine) as place:
        if place.manifest:
            return place.manifest
        stage = stage_of(place, "filter", ApplySteps(steps, settings, bad), shards)
        records = engine.run(stage)
        refuse_bad_rows(shards, records, bad)
        stage, records = one_schema(place, stage, records, engine)
        return publish_documents(place, stage, records, {"command": "test"}) if engine.is_first else None


def write_documents(path: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        row: dict[str, Any] = {"text": "wort " * draw.randrange(0, 9), "n": number, "score": draw.random()}
        if number % 3 == 0:
            row["tags"] = ["a", {"b": number}]
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
