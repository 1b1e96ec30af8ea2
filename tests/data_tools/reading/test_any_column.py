"""Columns of every type that Parquet can hold, with any values, as scores, metadata, labels and texts."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from data_tools.reading.arrow_values import plain_values
from data_tools.reading.columns import column_rows
from data_tools.reading.documents import document_batches
from data_tools.reading.inputs import find_inputs
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings, TaskGroup, cut_tasks
from data_tools.reading.text import Rows
from megatron_kaiyuan.errors import UserError

UNITS = ("s", "ms", "us", "ns")
INT64 = st.integers(-(2**63), 2**63 - 1)
BYTES = st.binary(max_size=6)
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)


def integers(kind: pa.DataType) -> st.SearchStrategy[Any]:
    bits = kind.bit_width
    low, high = (0, 2**bits - 1) if pa.types.is_unsigned_integer(kind) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.integers(low, high)


def from_integers(kind: pa.DataType) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    return kind, st.integers(-(2**31), 2**31 - 1) if kind.bit_width == 32 else INT64


# How a leaf is made: its type, and the values or the whole numbers that it stores.
STORED = [
    *map(from_integers, [pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]),
    *(from_integers(pa.duration(unit)) for unit in UNITS),
    *(from_integers(pa.timestamp(unit, zone)) for unit in UNITS for zone in (None, "UTC", "+05:30", "Nowhere/Here")),
]
PLAIN = [
    *((kind, integers(kind)) for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64())),
    (pa.float16(), st.floats(width=16)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(38, 9), st.decimals(-(10**25), 10**25, places=9)),
    (pa.decimal256(60, 2), st.decimals(-(10**25), 10**25, places=2)),
    *((kind, TEXT) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *((kind, BYTES) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.null(), st.none()),
]


@st.composite
def leaves(draw: st.DrawFn, rows: int) -> pa.Array:
    stored = draw(st.booleans())
    kind, values = draw(st.sampled_from(STORED if stored else PLAIN))
    drawn = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
    if stored:
        return pa.array(drawn, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    column = pa.array(drawn, kind)
    encode = kind in (pa.int32(), pa.float64(), pa.string()) and draw(st.booleans())
    return column.dictionary_encode() if encode else column


@st.composite
def columns(draw: st.DrawFn, rows: int, depth: int = 0) -> pa.Array:
    shape = draw(st.sampled_from(["leaf"] * 3 + ([] if depth > 2 else ["list", "large", "fixed", "map", "struct"])))
    if shape == "leaf":
        return draw(leaves(rows))
    if shape == "struct":
        count = draw(st.integers(1, 3))
        names = draw(st.lists(st.sampled_from("ab"), min_size=count, max_size=count))
        mask = pa.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), pa.bool_())
        return pa.StructArray.from_arrays([draw(columns(rows, depth + 1)) for _ in names], names, mask=mask)
    if shape == "fixed":
        return pa.FixedSizeListArray.from_arrays(draw(columns(2 * rows, depth + 1)), 2)
    sizes = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
    ends = [sum(sizes[:i]) for i in range(rows + 1)]
    values = draw(columns(ends[-1], depth + 1))
    if shape == "map":
        keys = pa.array([f"k{i}" for i in range(ends[-1])])
        return pa.MapArray.from_arrays(pa.array(ends, pa.int32()), keys, values)
    array = pa.ListArray if shape == "list" else pa.LargeListArray
    return array.from_arrays(pa.array(ends, pa.int32() if shape == "list" else pa.int64()), values)


def stored(folder: Path, **table: Any) -> Path:
    path = folder / "in.parquet"
    pq.write_table(pa.table(table), path)
    return path


def read(path: Path, wanted: Settings) -> Rows:
    all_rows = Rows.empty(wanted)
    for task in cut_tasks(find_inputs([path]), wanted, {}):
        for rows in column_rows(task, wanted):
            for name in wanted.meta_keys:
                all_rows.meta[name] += rows.meta[name]
            for name in wanted.score_keys:
                all_rows.scores[name] += rows.scores[name]
            all_rows.texts["text"] += rows.texts["text"]
            all_rows.domains += rows.domains
            all_rows.bad += rows.bad
            all_rows.count += rows.count
    return all_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("columns")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_any_column_is_read_or_refused_in_one_line(folder: Path, data: st.DataObject) -> None:
    column = data.draw(columns(3))
    path = folder / "in.parquet"
    table = {"text": ["a", "b", "c"], "x": column, "domain": column}
    try:
        pq.write_table(pa.table(table), path)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        reject()  # a column that Parquet cannot hold is not an example; too many of these fail the test
    as_meta = read(path, Settings(Path(), meta_keys=("x",)))
    assert (len(as_meta.meta["x"]), as_meta.count, as_meta.bad) == (3, 3, [])
    nulls = pq.read_table(path).column("x").is_null().to_pylist()
    assert [value is None for value in as_meta.meta["x"]] == nulls
    for value in as_meta.meta["x"]:
        assert value is None or value.encode() is not None
    for wanted in (Settings(Path(), score_keys=("x",)), Settings(Path(), ("x",))):
        try:
            rows = read(path, wanted) if "text" in wanted.json_keys else None
            assert rows is None or rows.count == 3
            tasks = cut_tasks(find_inputs([path]), wanted, {})
            found = [batch.documents for batch in document_batches(Shard(0, 0, "", TaskGroup.of(tasks[:1])), wanted)]
            pq.write_table(pa.Table.from_batches(found), folder / "out.parquet")
        except UserError as error:
            assert "in.parquet" in str(error) and "copy" not in str(error)


@pytest.mark.parametrize("unit", UNITS)
@given(number=INT64)
@settings(max_examples=60, deadline=None)
def test_time_stamps_are_what_python_writes(unit: str, number: int) -> None:
    found = plain_values(pa.array([number], pa.int64()).view(pa.timestamp(unit)))[0]
    second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    whole, rest = divmod(number, second)
    try:
        expected = str(datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=whole))
    except OverflowError:
        if unit != "s" or number > -(2**63):  # which NumPy takes for no time at all
            year = 1970 + whole / 31556952
            assert abs(int(found.split(":")[0].rsplit("-", 2)[0]) - year) < 2
        return
    if rest:
        digits = f"{rest * (10**9 // second):09d}"
        expected += "." + (digits[:6] if digits.endswith("000") else digits)
    assert found == expected
    with_zone = plain_values(pa.array([number], pa.int64()).view(pa.timestamp(unit, "Nowhere/Here")))[0]
    assert with_zone == f"{expected}+00:00"


@given(st.dates(), st.times())
@settings(max_examples=60, deadline=None)
def test_dates_and_times_are_what_python_writes(day: datetime.date, time: datetime.time) -> None:
    assert plain_values(pa.array([day], pa.date32())) == [str(day)]
    assert plain_values(pa.array([time], pa.time64("us"))) == [str(time)]


def test_values_beyond_python(tmp_path: Path) -> None:
    days = pa.array([-(2**31), 2**31 - 1, 0], pa.int32()).view(pa.date32())
    assert plain_values(days) == ["-5877641-06-23", "5881580-07-11", "1970-01-01"]
    assert plain_values(pa.array([86_400_000, -1], pa.int64()).view(pa.time64("us"))) == ["00:01:26.400000", "-1 us"]
    assert plain_values(pa.array([-1500], pa.duration("ms"))) == ["-1500 ms"]
    path = stored(tmp_path, text=["a"], x=pa.array([[{"d": 2**31 - 1}]], pa.list_(pa.struct([("d", pa.date32())]))))
    assert read(path, Settings(Path(), meta_keys=("x",))).meta["x"] == ['[{"d": "5881580-07-11"}]']


def test_values_as_text(tmp_path: Path) -> None:
    kept = {
        "bytes": pa.array([b"caf\xe9 \xc3\xa9"]),
        "decimal": pa.array([decimal.Decimal("1200.50")], pa.decimal128(10, 2)),
        "half": pa.array([1.5], pa.float16()),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "twice": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
        "big": pa.array([2**64 - 1], pa.uint64()),
    }
    path = stored(tmp_path, text=["a"], **kept)
    meta = read(path, Settings(Path(), meta_keys=tuple(kept))).meta
    assert {name: values[0] for name, values in meta.items()} == {
        "bytes": "caf\\xe9 é",
        "decimal": "1200.50",
        "half": "1.5",
        "map": '[["k", 1]]',
        "twice": '[["a", 1], ["a", 2]]',
        "big": "18446744073709551615",
    }


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.uint64(), pa.decimal128(38, 0), pa.decimal256(60, 3), pa.dictionary(pa.int8(), pa.int64())]
)
def test_scores_of_parquet_are_those_of_json_lines(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = [1, 2**53 + 1, 2**63 - 1, None]
    column = pa.array(numbers, pa.int64()).dictionary_encode() if pa.types.is_dictionary(kind) else None
    column = pa.array(numbers, kind) if column is None else column
    path = stored(tmp_path, text=list("abcd"), score=column)
    scores = read(path, Settings(Path(), score_keys=("score",))).scores["score"]
    assert scores[:3] == [float(number) for number in numbers[:3]] and math.isnan(scores[3])


def test_text_that_is_not_utf8_is_a_bad_row_wherever_it_is(tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"]).buffers())
    path = stored(tmp_path, text=["a", "b"], x=wrong, nested=pa.ListArray.from_arrays(pa.array([0, 1, 2]), wrong))
    for name in ("x", "nested"):
        rows = read(path, Settings(Path(), meta_keys=(name,)))
        assert rows.texts["text"] == ["a"] and [bad.reason for bad in rows.bad] == ["not text in UTF-8"]


def test_nested_beyond_reason_is_refused_in_one_line(tmp_path: Path) -> None:
    column = pa.array([1])
    for _ in range(400):
        column = pa.StructArray.from_arrays([column], names=["a"])
    path = stored(tmp_path, text=["a"], x=column)
    with pytest.raises(UserError, match=r"in\.parquet: cannot be read \(.*deeply nested.*write it in another way"):
        read(path, Settings(Path(), meta_keys=("x",)))


def test_the_same_without_pandas(tmp_path: Path) -> None:
    stored(tmp_path, text=["a"], when=pa.array([1704067200123456789], pa.timestamp("ns", "Europe/Berlin")))
    (tmp_path / "none/pandas").mkdir(parents=True)
    (tmp_path / "none/pandas/__init__.py").write_text("raise ImportError('not installed')")
    program = (
        "import json, sys; from data_tools.reading.arrow_values import plain_values; import pyarrow.parquet as pq; "
        "print(json.dumps(plain_values(pq.read_table(sys.argv[1])['when'].combine_chunks())))"
    )
    for path in ("", str(tmp_path / "none")):
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "in.parquet"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert json.loads(done.stdout) == ["2024-01-01 00:00:00.123456789+00:00"]


def test_no_row_groups(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "in.parquet", pa.schema([("text", pa.string())])):
        pass
    assert pq.ParquetFile(tmp_path / "in.parquet").num_row_groups == 0
    assert read(tmp_path / "in.parquet", Settings(Path())).count == 0
