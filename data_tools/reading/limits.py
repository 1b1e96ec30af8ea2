"""The longest row, apart from what reads rows, so that `--help` needs no library."""

from __future__ import annotations

# Far above any book; several times as much is the memory that a process needs for a row.
MAX_ROW_BYTES = 256 << 20
ROW_BYTES_HELP = "a longer line, or text in Parquet, is a bad row and is not held in memory; 0: no limit"
