"""Runs about runs: a list of recipes with overrides becomes a table of what each run reached on held-out text.

    folder/lists/<identity>.json     the runs that somebody asked for
    folder/runs/<fingerprint>/       a run folder of `kaiyuan train`, its log, and `result.json` once it is whole
    folder/results.jsonl, .parquet   a row for each whole run of the list that was asked for last

What decides a result decides its fingerprint: whole runs are reused, by any list. Each run is trained under a lock,
so that several queues on one folder share the work, and a queue that was killed is continued by the same command.
"""

from __future__ import annotations

from megatron_kaiyuan.research.queue.request import Run
from megatron_kaiyuan.research.queue.run_all import run_all

__all__ = ["Run", "run_all"]
