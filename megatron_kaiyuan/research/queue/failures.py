"""Which runs have failed in an attempt: shared among the tasks of one array and the command that waits for them."""

from __future__ import annotations

from pathlib import Path

from megatron_kaiyuan.files import write_text
from megatron_kaiyuan.research.queue.task import ReadyRun


class Failures:
    """Reasons by run, a file each; a later attempt tries the runs again.

    Args:
        folder: of the queue.
        attempt: a name that no other attempt has, such as the number of an array.
    """

    def __init__(self, folder: Path, attempt: str):
        self._folder = folder / "slurm" / f"{attempt}_failed"

    def add(self, task: ReadyRun, why: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / task.fingerprint, why)

    def of(self, task: ReadyRun) -> str | None:
        """Why a run has failed in this attempt; None: it has not."""
        try:
            return (self._folder / task.fingerprint).read_text()
        except FileNotFoundError:
            return None
