"""Damaged Parquet files: text of another column that is not UTF-8, and a footer over which pyarrow ends the process."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.reading.columns import column_rows
from data_tools.reading.documents import document_batches
from data_tools.reading.group_schema import group_schema
from data_tools.reading.inputs import find_inputs
from data_tools.reading.tasks import Settings, cut_tasks
from data_tools.steps.datasets import find_datasets
from megatron_kaiyuan.errors import UserError


def test_a_value_that_is_no_text_is_a_bad_row(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two", "three"], "domain": ["web", "code", "web"]})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none", write_statistics=False)
    whole = (tmp_path / "a.parquet").read_bytes()
    place = whole.index(b"code")
    (tmp_path / "a.parquet").write_bytes(whole[:place] + b"\xff\xfe" + whole[place + 2 :])
    settings = Settings(Path())
    (dataset,) = find_datasets([str(tmp_path / "a.parquet")], settings, 0, quiet=True)
    batches = [batch for shard in dataset.shards for batch in document_batches(shard, settings)]
    kept = [text for batch in batches for text in batch.documents.column("text").to_pylist()]
    bad = [(place.row, place.reason) for batch in batches for place in batch.bad]
    assert kept == ["one", "three"]
    assert bad == [(2, "column 'domain' is not text in UTF-8")]


def _as_preprocess(path: Path) -> None:
    for task in cut_tasks(find_inputs([path]), Settings(Path()), {}):
        list(column_rows(task, Settings(Path())))


def _as_dedup(path: Path) -> None:
    (dataset,) = find_datasets([str(path)], Settings(Path()), 0, quiet=True)
    for shard in dataset.shards:
        list(document_batches(shard, Settings(Path())))


def _beside_other_types(path: Path) -> None:
    other = path.with_name("other.parquet")
    pq.write_table(pa.table({"text": ["four"], "number": [0.5]}), other)
    (dataset,) = find_datasets([f"both={path}", f"both={other}"], Settings(Path()), 0, quiet=True)
    for shard in dataset.shards:
        group_schema(shard, Settings(Path()))


@pytest.mark.parametrize("read", [_as_preprocess, _as_dedup, _beside_other_types])
def test_sizes_in_a_footer_over_which_pyarrow_ends_the_process(tmp_path: Path, read: Callable[[Path], None]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"number": [1, None, 3], "text": ["one", None, "three"]}), path)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    # In Thrift's compact form: a column's histogram of definition levels, a list of two numbers.
    histogram = b"\x19\x26\x02\x04"
    assert whole.count(histogram) == 2
    path.write_bytes(
        whole[:-8].replace(histogram, histogram[:1] + b"\x16\x02") + (footer - 2).to_bytes(4, "little") + b"PAR1"
    )
    program = "import sys, pyarrow.parquet as pq; pq.ParquetFile(sys.argv[1]).metadata.row_group(0).column(1)"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode and "histogram size mismatch" in done.stderr
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read \(.*histogram size mismatch.*\); check or copy"):
        read(path)


def test_a_column_that_is_shorter_than_the_footer_says_is_refused(tmp_path: Path) -> None:
    """pyarrow reads one column of a row group whose entry is damaged to nothing, without an error."""
    table = pa.table({"text": [f"document {number}" for number in range(12)], "number": range(12)})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=4, store_schema=False)
    whole = path.read_bytes()
    end = len(whole) - 8
    shorter = 0
    for place in range(end - int.from_bytes(whole[end : end + 4], "little"), end):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            try:
                file = pq.ParquetFile(io.BytesIO(damaged))
                rows = sum(len(batch) for batch in file.iter_batches(columns=["text"]))
            except (pa.ArrowException, OSError, ValueError):
                continue
            if rows != 8:
                continue
            shorter += 1
            path.write_bytes(damaged)
            for read in (_as_preprocess, _as_dedup):
                with pytest.raises(UserError, match=r"a\.parquet: cannot be read .*(rows where its footer says|size)"):
                    read(path)
    assert shorter > 10
