"""What users bring: rows of text, held-out text, tables of ranks, Python files; and results of earlier commands."""

from __future__ import annotations

import lzma
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
_PROMPTS = b'{"prompt": "one two"}\n{"prompt": "three", "x": [1]}\n'
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


def _packed(suffix: str) -> Callable[[Path], Path]:
    """Two frames of rows, as shards that were joined with `cat` have."""
    from data_tools.reading.packing import PACKINGS

    def make(folder: Path) -> Path:
        packing = PACKINGS[suffix]
        match packing:
            case "xz":
                frame = lzma.compress(_ROWS)
            case "gzip" | "zstd" | "bz2" | "lz4":
                sink = pa.BufferOutputStream()
                with pa.CompressedOutputStream(sink, packing) as stream:
                    stream.write(_ROWS)
                frame = sink.getvalue().to_pybytes()
        return _file(f"rows.jsonl{suffix}", 2 * frame)(folder)

    return make


def _parquet(folder: Path) -> Path:
    columns = {"text": ["one two", "three", None], "domain": ["web", None, ""], "score": [0.5, None, 3.0]}
    (folder / "given").mkdir()
    pq.write_table(pa.table({**columns, "number": [1, 2, 3]}), folder / "given" / "rows.parquet")
    return folder / "given" / "rows.parquet"


def _many_encodings(folder: Path) -> Path:
    """Each codec, and each way in which pages hold values."""
    numbers = pa.array([1, 2, None, 4] * 3, pa.int64())
    texts = pa.array(["one two", "three", None, "four"] * 3)
    encodings = {
        "text": "DELTA_BYTE_ARRAY",
        "domain": "DELTA_LENGTH_BYTE_ARRAY",
        "number": "DELTA_BINARY_PACKED",
        "score": "BYTE_STREAM_SPLIT",
        "flag": "RLE",
    }
    columns = {"text": texts, "domain": texts, "number": numbers, "score": numbers.cast(pa.float64())}
    columns |= {"flag": numbers.cast(pa.bool_()), "tags": pa.array([["a"], [], None, ["b", None]] * 3)}
    codecs = ("zstd", "gzip", "brotli", "lz4", "snappy", "none")
    (folder / "given").mkdir()
    pq.write_table(
        pa.table(columns),
        folder / "given" / "rows.parquet",
        compression=dict(zip(columns, codecs, strict=True)) | {"tags.list.element": "zstd"},
        use_dictionary=False,
        column_encoding=encodings,
        data_page_version="2.0",
        write_page_index=True,
        row_group_size=6,
    )
    return folder / "given" / "rows.parquet"


def _preprocess(path: Path) -> Any:
    """The rows that `preprocess` takes, with all that it can be asked for."""
    from data_tools.preprocessing.shards import _read
    from data_tools.reading.inputs import find_inputs
    from data_tools.reading.tasks import Settings, cut_tasks

    settings = Settings(Path(), score_keys=("score",), meta_keys=("number",) if path.suffix == ".parquet" else ("id",))
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


def _beside_others(path: Path) -> Any:
    """As one of several files whose columns have other types, so that the numbers of this one are looked at."""
    from data_tools.reading.group_schema import group_schema
    from data_tools.reading.tasks import Settings
    from data_tools.steps.datasets import find_datasets

    other = path.with_name("other.parquet")
    pq.write_table(pa.table({"text": ["four"], "number": [0.5]}), other)
    settings = Settings(Path())
    for dataset in find_datasets([f"both={path.parent}"], settings, 0, quiet=True):
        for shard in dataset.shards:
            group_schema(shard, settings)


def _held_out(path: Path) -> Any:
    from megatron_kaiyuan.evaluate.tasks import read_domains

    read_domains([path])


def _prompts(path: Path) -> Any:
    from megatron_kaiyuan.generate.prompts import read_prompts

    read_prompts(path)


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
    *(
        Target(f"input-packed{suffix}", _packed(suffix), mutate, [_preprocess, _documents], lenient=True)
        for suffix in (".gz", ".zst", ".bz2", ".lz4", ".xz")
    ),
    Target("input-parquet", _parquet, mutate, [_preprocess, _documents, _beside_others]),
    Target("input-parquet-encodings", _many_encodings, mutate, [_preprocess, _documents, _beside_others]),
    Target("input-held-out", _file("held.jsonl", _ROWS), json_damage.rows, [_held_out]),
    Target("input-prompts", _file("prompts.jsonl", _PROMPTS), json_damage.rows, [_prompts]),
    Target("input-ranks", _file("ranks.json", _TABLE), json_damage.plain, [_ranks]),
    Target("input-python", _file("module.py", _CODE), mutate, [_python]),
    Target("record-evaluated", _earlier_evaluation, json_damage.plain, [_evaluation]),
    Target("record-bad-rows", _file("x.bad_rows.jsonl", _BAD), json_damage.rows, [_earlier_bad_rows]),
)
