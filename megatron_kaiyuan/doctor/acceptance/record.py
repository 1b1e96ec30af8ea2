"""The record of an acceptance: one JSON file that holds everything, and the lines alone as text."""

from __future__ import annotations

import os
import platform as system
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from megatron_kaiyuan.doctor.acceptance.check import Result, State
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_sealed_json, write_sealed_json, write_text
from megatron_kaiyuan.forms import Count, Form, require_form
from megatron_kaiyuan.outputs import Earlier, Output, claim, identity_of
from megatron_kaiyuan.redaction import redact_values
from megatron_kaiyuan.versions import git_state, source_fingerprint, versions

_FORMAT = "kaiyuan acceptance"
_FILE = "acceptance.json"
# Of the environment only what steers devices and libraries.
_VARIABLES = (
    *("ACL_", "ASCEND_", "CPU_AFFINITY_CONF", "CUDA_", "HCCL_", "INF_NAN_MODE", "LD_LIBRARY_PATH", "NCCL_", "NPU_"),
    *("OMP_", "PYTORCH_", "RANK_TABLE_FILE", "TASK_QUEUE_ENABLE", "TORCH_"),
)
_AWAY = "move it away, or name another --output"


class _Entry(Form):
    model_config = ConfigDict(extra="forbid")
    number: Count
    name: str
    title: str
    state: State
    figure: str
    seconds: float
    output: str = ""
    facts: dict[str, Any] = {}


class _Record(Form):
    identity: str
    checks: list[_Entry]


class AcceptanceRecord:
    """Results so far, on the disk after each one.

    Attributes:
        file: what to send back.
        results: by the check's name.
    """

    def __init__(self, folder: Path, identity: str, platform: str):
        self.file = folder / _FILE
        self.results: dict[str, Result] = {}
        self._numbers: dict[str, int] = {}
        self._lines = folder / "acceptance.txt"
        self._about = {"format": _FORMAT, "version": 1, "identity": identity, "platform": platform}
        if self.file.exists():
            content = read_sealed_json(self.file, "record of an acceptance")
            for entry in require_form(self.file, content, _Record, _AWAY).checks:
                self._numbers[entry.name] = entry.number
                self.results[entry.name] = Result(**entry.model_dump(exclude={"number"}))

    def add(self, number: int, result: Result) -> None:
        """Put a result in place of an earlier one of the same check, and write both files."""
        self.results[result.name] = result
        self._numbers[result.name] = number
        self.write()

    def passed(self) -> dict[str, Result]:
        """Those that need not be run again."""
        return {name: result for name, result in self.results.items() if result.state != "failed"}

    def write(self) -> None:
        ordered = sorted(self.results.values(), key=lambda result: self._numbers[result.name])
        checks = [{"number": self._numbers[one.name], **redact_values(one.as_json())} for one in ordered]
        write_sealed_json(self.file, {**self._about, **_machine(), "checks": checks})
        write_text(self._lines, "".join(f"{self._numbers[one.name]:>2} {one.line}\n" for one in ordered))


@contextmanager
def open_record(folder: Path, platform: str, recipe: Path | None) -> Iterator[AcceptanceRecord]:
    """Hold the folder of a record, a new one or an earlier one of the same code, platform and recipe.

    Raises:
        UserError: something else lies there.
    """
    identity = identity_of(_FORMAT, platform, None if recipe is None else recipe.resolve(), source_fingerprint())
    with claim(Output(folder, "a record of an acceptance"), identity, _earlier(identity)):
        folder.mkdir(parents=True, exist_ok=True)
        record = AcceptanceRecord(folder, identity, platform)
        record.write()
        yield record


def _earlier(identity: str) -> Earlier:
    """Recognises a record that this command continues."""

    def earlier(output: Output) -> str | None:
        folder = output.path
        if not folder.exists() or not any(folder.iterdir()):
            return None
        try:
            record = read_sealed_json(folder / _FILE, "record of an acceptance")
        except UserError:
            record = {}
        if record.get("format") != _FORMAT:
            raise output.in_the_way(folder)
        if require_form(folder / _FILE, record, _Record, _AWAY).identity != identity:
            raise UserError(
                f"{folder}: holds the record of another --platform, another --recipe or another version of the code; "
                "name another --output"
            )
        return identity

    return earlier


def _machine() -> dict[str, Any]:
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "system": f"{system.system()} {system.release()} {system.machine()}",
        "versions": {**versions(), "source": source_fingerprint(), "git": git_state()},
        "environment": redact_values(variables),
    }
