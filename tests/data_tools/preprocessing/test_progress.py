"""The bar adds up what all processes have done."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from data_tools.preprocessing import progress
from data_tools.preprocessing.progress import Bar, Meter, forget, meter_path
from tests.helpers.files.json_lines import write_rows


def test_meters_of_all_ranks_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    for rank, process in ((0, 1), (0, 2), (1, 1), (7, 1)):
        meter = Meter(meter_path(tmp_path, rank, process))
        meter.advance(50, 1, 5)
        meter.advance(100, 2, 10)
        meter.finish(10**8)
        meter.advance(200, 4, 20)
        meter._write()
    # Rank 7 is of an earlier run with more ranks.
    (tmp_path / "progress/1-host-9").write_bytes(b"half")
    with Bar(tmp_path, total=10**9, done=10**8, world=2):
        time.sleep(0.3)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("preprocess: 0.40 of 1.00 GB, 21 documents, ")
    assert re.search(r"[0-9.]+ M tokens/s, \d+ minutes left$", line)
    forget(tmp_path, 0)
    left = [path.name.replace(os.uname().nodename, "host") for path in (tmp_path / "progress").iterdir()]
    assert sorted(left) == ["1-host-1", "1-host-9", "7-host-1"]


def test_a_terminal_gets_one_bar(tokenizer_path: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "some text " * 100}] * 600)
    line: list[str | Path] = [
        sys.executable,
        "-m",
        "data_tools",
        "preprocess",
        "--input",
        path,
        "--workers",
        "2",
        "--task-bytes",
        "500000",
    ]
    line += ["--output-prefix", tmp_path / "c", "--tokenizer-model", tokenizer_path]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 160, 0, 0))
    with subprocess.Popen(line, cwd=Path(__file__).parents[3], stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 1 << 16):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    last = [state for state in shown.decode().split("\r") if state.startswith("preprocess:")][-1]
    assert "100%" in last
    assert "600 documents" in last
    assert "M tokens/s" in last
