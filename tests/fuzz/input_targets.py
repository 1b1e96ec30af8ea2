"""What users bring: rows of text, held-out text, tables of ranks, Python files; and results of earlier commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_kaiyuan.errors import UserError
from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate

_ROWS = (
    b'{"text": "one two", "domain": "web", "score": 0.5, "meta": {"a": [1]}, "id": 9007199254740993}\n'
    b'{"text": "three", "domain": "", "score": null, "x": NaN}\n'
    b'{"text": "\\u4e16\\u754c", "score": 3, "other": true}\n'
)
_TABLE = (
    b'{"status": "completed", "version": "1.0", "server_count": "1", "server_list": [{"server_id": "a", "device": '
    b'[{"device_id": "0", "rank_id": "0"}, {"device_id": "1", "rank_id": "1"}]}]}'
)
_CODE = (
    b'"""Of the module."""\n\nTABLE = {"a": "b"}\n\n\nclass A:\n    """Of A."""\n\n'
    b'    def f(self):\n        """Of f."""\n'
)


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "given").mkdir()
        (folder / "given" / name).write_bytes(content)
        return folder / "given" / name

    return make


def _parquet(folder: Path) -> Path:
    columns = {"text": ["one two", "three", None], "domain": ["web", None, ""], "score": [0.5, None, 3.0]}
    (folder / "given").mkdir()
    pq.write_table(pa.table({**columns, "number": [1, 2, 3]}), folder / "given" / "rows.parquet")
    return folder / "given" / "rows.parquet"


def _preprocess(path: Path) -> Any:
    """The rows that `preprocess` takes, with all that it can be asked for."""
    from data_tools.preprocessing.shards import _read
    from data_tools.reading.inputs import find_inputs
    from data_tools.reading.tasks import Settings, cut_tasks

    settings = Settings(Path(), score_keys=("score",), meta_keys=("id",) if path.suffix == ".jsonl" else ("number",))
    for task in cut_tasks(find_inputs([path]), settings, {}):
        for rows in _read(task, settings):
            rows.texts["text"]


def _documents(path: Path) -> Any:
    """The documents that `dedup` and `score` take."""
    from data_tools.reading.documents import document_batches
    from data_tools.reading.tasks import Settings
    from data_tools.steps.datasets import find_datasets

    settings = Settings(Path())
    for dataset in find_datasets([str(path)], settings, 0, quiet=True):
        for shard in dataset.shards:
            for batch in document_batches(shard, settings):
                batch.documents.validate(full=True)


def _held_out(path: Path) -> Any:
    from megatron_kaiyuan.evaluate.tasks import read_domains

    read_domains([path])


def _ranks(path: Path) -> Any:
    from megatron_kaiyuan.cluster.hccl import _table_notice

    with mock.patch.dict(os.environ, {"RANK_TABLE_FILE": str(path)}):
        _table_notice(2)


def _python(path: Path) -> Any:
    from data_tools.harvesting.harvest_sources import _docstrings, _string_table

    found = [*_docstrings(path), *_string_table(path)]
    if not found:
        raise UserError(f"{path}: nothing in it")


def _evaluation(path: Path) -> Any:
    from megatron_kaiyuan.evaluate.run import FORMAT
    from megatron_kaiyuan.outputs import Output, marked_json

    marked_json(FORMAT)(Output(path, "an evaluation", kind="file"))


def _earlier_evaluation(folder: Path) -> Path:
    from megatron_kaiyuan.evaluate.run import FORMAT

    return _file("evaluation.json", b'{"format": "%s", "identity": "i", "x": {}}' % FORMAT.encode())(folder)


def _earlier_bad_rows(path: Path) -> Any:
    from data_tools.preprocessing.joining import earlier_bad_rows
    from megatron_kaiyuan.outputs import Output

    earlier_bad_rows(Output(path, "a list of bad rows", kind="file"))


_BAD = b'{"file": "a.jsonl", "line": 3, "offset": 10, "reason": "not JSON"}\n'

TARGETS = (
    Target("input-rows", _file("rows.jsonl", _ROWS), json_damage.rows, [_preprocess, _documents], lenient=True),
    Target("input-rows-bytes", _file("rows.jsonl", _ROWS), mutate, [_preprocess, _documents], lenient=True),
    Target("input-parquet", _parquet, mutate, [_preprocess, _documents]),
    Target("input-held-out", _file("held.jsonl", _ROWS), json_damage.rows, [_held_out]),
    Target("input-ranks", _file("ranks.json", _TABLE), json_damage.plain, [_ranks]),
    Target("input-python", _file("module.py", _CODE), mutate, [_python]),
    Target("record-evaluated", _earlier_evaluation, json_damage.plain, [_evaluation]),
    Target("record-bad-rows", _file("x.bad_rows.jsonl", _BAD), json_damage.rows, [_earlier_bad_rows]),
)
