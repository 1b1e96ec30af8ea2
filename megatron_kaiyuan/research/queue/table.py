"""The table of results: JSON lines for people and scripts, Parquet for everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_kaiyuan.files import atomic_path, write_text

ROWS, COLUMNS = "results.jsonl", "results.parquet"


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write both forms; a column that a row does not have is null there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    whole = [{name: row.get(name) for name in names} for row in rows]
    write_text(folder / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole))
    table = pa.table({name: pa.array([row[name] for row in whole]) for name in names})
    with atomic_path(folder / COLUMNS) as temporary:
        pq.write_table(table, temporary)
