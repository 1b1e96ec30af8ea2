"""The error for more bad rows (lines or Parquet rows that hold no document) than --max-bad-rows allows."""

from __future__ import annotations

from data_tools.reading.columns import rows_before
from data_tools.reading.lines import lines_before
from data_tools.reading.tasks import KEPT, Task
from data_tools.reading.text import BadPlace
from megatron_kaiyuan.errors import UserError


def too_many(task: Task, place: BadPlace, count: int, allowed: int) -> UserError:
    """The error for the first bad row beyond the allowed ones; looks up its number in the whole file."""
    number = place.row + (rows_before if task.file.format == "parquet" else lines_before)(task)
    beyond = f"{count} bad rows so far, --max-bad-rows is {allowed}" if allowed else "a bad row"
    return UserError(
        f"{task.file.name}:{number}: {place.reason} ({beyond}); mend it, or leave such rows out with a higher "
        f"--max-bad-rows: {KEPT}"
    )
