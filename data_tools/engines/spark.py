"""Spark hands out tasks: executors read and write files themselves, and no document passes through the JVM.

Every executor sees the inputs and the output under the same paths, as ranks do. The session is the one that
spark-submit configured; see launch/spark_submit.sh.
"""

from __future__ import annotations

from typing import Any

from data_tools.engines.stage import Record, Stage
from megatron_kaiyuan.errors import UserError


class SparkEngine:
    """Does each stage as one Spark job, a task a partition unless there are very many."""

    is_first = True

    def __init__(self, partitions: int | None = None):
        self._partitions = partitions
        self._session: Any = None

    def run(self, stage: Stage) -> list[Record]:
        """See `Engine.run`."""
        raise UserError("--engine spark: not there yet")
