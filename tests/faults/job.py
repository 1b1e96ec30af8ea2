"""Ranks that train as `kaiyuan train` does, as forks of this process; see tests/helpers/processes/ranks.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan import platform
from tests.helpers.processes.ranks import Ranks

platform.activate("cpu")

from megatron_kaiyuan.train import start  # noqa: E402, F401 - what takes the time; a platform has to be active before
from megatron_kaiyuan.train.rank import run_on_this_rank  # noqa: E402


class Job(Ranks):
    """The training command on ranks.

    Args:
        log: takes what the ranks print; appended to.
        largest_file: bytes, a limit of the system on each file that a rank writes.
    """

    def __init__(self, ranks: int, recipe: Path, overrides: Sequence[str], log: Path, largest_file: int | None = None):
        super().__init__(ranks, lambda: run_on_this_rank(recipe, overrides), (log, log), largest_file)
