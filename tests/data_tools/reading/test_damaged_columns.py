"""Text of another column that is not UTF-8, as a damaged Parquet file has it: a bad row for `dedup` and `score`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.reading.documents import document_batches
from data_tools.reading.tasks import Settings
from data_tools.steps.datasets import find_datasets


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
