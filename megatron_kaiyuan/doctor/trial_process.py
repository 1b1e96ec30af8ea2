"""The trial of a device in a process of its own.

A device may hang, or end the process; and one operator that fails in torch_npu's task queue silently stops every later
one. None of it may reach the process that reports.

    python -m megatron_kaiyuan.doctor.trial_process PLATFORM LOCAL_RANK LOCAL_WORLD_SIZE RESULT
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_kaiyuan import logs
from megatron_kaiyuan.doctor.child import how_it_ended, kill_tree, start
from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.errors import excerpt
from megatron_kaiyuan.files import read_json, write_json

# Each operator ends before the next begins, so that one that fails says so and spoils no other.
_ENVIRONMENT = {"TASK_QUEUE_ENABLE": "0", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


class TrialProcess:
    """Starts at once and works beside the rest of the examination; killed at the end of the `with`.

    Args:
        name: of the platform, as in a recipe.
    """

    def __init__(self, name: str, local_rank: int, local_world_size: int):
        self._folder = tempfile.TemporaryDirectory(prefix="kaiyuan_trial_")
        self._result = Path(self._folder.name) / "result.json"
        self._printed = Path(self._folder.name) / "printed"
        command = [sys.executable, "-m", __spec__.name, name, str(local_rank), str(local_world_size), str(self._result)]
        self._process = start(command, self._printed, _ENVIRONMENT)

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        kill_tree(self._process)
        self._folder.cleanup()

    def collect(self, found: Examination, seconds: float) -> bool:
        """Add the facts and findings of the trial.

        Returns:
            Whether the platform can be used: it was activated, and its collectives work on one process.
        """
        try:
            ended: int | None = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            ended = None
            kill_tree(self._process)
        content: dict[str, Any] = read_json(self._result, "result of a trial") if self._result.exists() else {}
        trial = Examination.from_json(content) if content else Examination()
        found.facts.update(trial.facts)
        found.findings.extend(trial.findings)
        doing = content.get("doing", "its start")
        if ended is None:
            found.problem(
                f"device: {doing} did not end within {seconds:g} seconds: training would wait in the same place; look "
                "at the device's health and whether other processes hold it, or give it more time (--timeout)"
            )
        elif ended:
            found.problem(
                f"device: the process that tried it {how_it_ended(ended)} in {doing}{self._last_words()}: training "
                "would end in the same place; install the driver and libraries that fit torch"
            )
        return ended == 0 and bool(trial.facts.get("trial", {}).get("collectives"))

    def _last_words(self) -> str:
        lines = self._printed.read_text(errors="replace").strip().splitlines()
        return f" ({excerpt(lines[-1])})" if lines else ""


def _run(name: str, local_rank: int, local_world_size: int, result: Path) -> None:
    found = Examination()

    def keep() -> None:
        write_json(result, {**found.as_json(), "doing": found.doing})

    keep()
    with found.part("platform"):
        found.doing = "the start of the platform"
        keep()
        from megatron_kaiyuan import platform

        device = platform.activate(name, local_rank, local_world_size)
        found.facts["platform"] = {
            "name": device.name,
            "backend": device.collective_backend,
            "devices": device.device_names(),
            "precisions": list(device.precisions),
            "findings": dict(device.findings),
        }
        from megatron_kaiyuan.doctor.trial import try_device

        try_device(found, device, keep)
    keep()


if __name__ == "__main__":
    logs.set_up()
    _run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    # Exit without the driver's own cleanup: if that fails or hangs, the trial has not failed.
    sys.stdout.flush()
    os._exit(0)
