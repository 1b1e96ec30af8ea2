"""What the imports of a rank ask of file systems, counted by strace, and the seconds that they take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import megatron_kaiyuan
from megatron_kaiyuan.errors import UserError

# As `train/rank.py` does before the groups are made.
_RANK = """
import sys, megatron_kaiyuan.cli, megatron_kaiyuan.train.rank
from megatron_kaiyuan import platform
platform.activate(sys.argv[1])
import megatron_kaiyuan.train.start
"""
_CALL = re.compile(r"\b(stat|lstat|newfstatat|statx|open|openat)\((?:AT_FDCWD, )?\"((?:[^\"\\]|\\.)+)\"")
_PLACES = ("environment", "interpreter", "project", "elsewhere")


def measure(platform: str) -> str:
    """A table of calls by place, and seconds of the second of two starts.

    Args:
        platform: what ranks run on: cpu, cuda, npu or auto.

    Raises:
        UserError: strace is not here, or the imports fail.
    """
    if not shutil.which("strace"):
        raise UserError("strace is not installed, and counts the calls: install it (Debian: apt-get install strace)")
    command = [sys.executable, "-W", "ignore", "-c", _RANK, platform]
    _run(command)
    began = time.monotonic()
    _run(command)
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "calls")
        _run(["strace", "-f", "-qq", "-e", "trace=%file", "-o", str(log), *command])
        with open(log, encoding="utf-8", errors="replace") as lines:
            return _table(count_calls(lines, places()), seconds)


def places() -> dict[str, Path]:
    """The folders that a start reads, by name; the innermost one counts."""
    found = {"environment": Path(sys.prefix), "interpreter": Path(sys.base_prefix)}
    project = Path(str(megatron_kaiyuan.__file__)).parents[1]
    return found if project.is_relative_to(sys.prefix) else {**found, "project": project}


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, as ext4, nfs4 or lustre."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, mount, kind, *_ = line.split(" ")
        if folder.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def count_calls(lines: Iterable[str], folders: dict[str, Path]) -> dict[str, Counter[str]]:
    """Calls by place and kind ("stat", "open"), from what `strace -e trace=%file` wrote.

    A folder on the way to a place belongs to it. Calls that name no path, as `fstat` of an open file, are not there.
    """
    found = {name: Counter[str]() for name in _PLACES}
    inner_first = sorted(folders.items(), key=lambda item: -len(str(item[1])))
    for line in lines:
        if match := _CALL.search(line):
            kind = "open" if match[1].startswith("open") else "stat"
            path = os.path.normpath(match[2])
            inside = (name for name, folder in inner_first if f"{path}/".startswith(f"{folder}/"))
            above = (name for name, folder in inner_first if path != "/" and f"{folder}/".startswith(f"{path}/"))
            found[next(inside, next(above, "elsewhere"))][kind] += 1
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the imports of a rank ended with exit code {done.returncode}: {last}")


def _table(calls: dict[str, Counter[str]], seconds: float) -> str:
    where = {name: f"{folder} ({file_system(folder)})" for name, folder in places().items()}
    where["elsewhere"] = "the system's libraries, /proc, /sys"
    rows = [f"{'':13}{'stats':>8}{'opens':>8}  folder"]
    rows += [f"{name:13}{calls[name]['stat']:8,}{calls[name]['open']:8,}  {place}" for name, place in where.items()]
    total = sum(calls.values(), Counter[str]())
    rows.append(f"{'all':13}{total['stat']:8,}{total['open']:8,}")
    return "\n".join([*rows, f"imports of a rank: {seconds:.1f} s, the files in memory"])
