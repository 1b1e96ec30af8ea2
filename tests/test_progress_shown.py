"""Progress: a bar on a terminal, a line a minute elsewhere, nothing for what is quick."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_kaiyuan import progress
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.progress import Progress, counted, reading


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown() -> str:
    assert isinstance(sys.stderr, Terminal)
    return sys.stderr.getvalue()


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_where_nobody_looks(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("merge", 4_000_000_000, "B") as bar, Progress("sort", 50, "documents", done=10) as other:
        for minute in range(3):
            seconds[0] = 59.0 + 60.5 * minute
            bar.reach(1_000_000_000 * minute)
            other.advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "merge: 1.00 of 4.00 GB",
        "sort: 14 of 50 documents",
        "merge: 2.00 of 4.00 GB",
        "sort: 16 of 50 documents",
    ]


def test_a_bar_on_a_terminal_for_what_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("quick", 10) as bar:
        bar.advance(10)
    assert "quick" not in shown()
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 1e-9)
    with Progress("slow", 10) as bar:
        bar.advance(3)
        bar._bar.refresh()
    assert "slow" in shown() and "3/10" in shown()


def test_a_line_of_output_takes_the_place_of_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 1e-9)
    with reading("verify", 10):
        bar = progress._reading
        assert bar is not None
        bar._bar.refresh()
        progress.say("step_25: whole")
        text = shown()
    assert "verify" in text and text.endswith("\r") and not text.split("\r")[-2].strip()
    assert capsys.readouterr().out == "step_25: whole\n"


def test_without_a_title_nothing(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("", 10) as bar:
        seconds[0] = 1000.0
        bar.advance()
    assert capsys.readouterr().err == ""


def test_what_passes_is_counted(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for item in counted(["a", "bb", "ccc"], "read", "characters", size=len):
        found.append(item)
        seconds[0] += 61
    assert found == ["a", "bb", "ccc"]
    assert capsys.readouterr().err.splitlines() == ["read: 1 characters", "read: 3 characters", "read: 6 characters"]


def test_checksums_count_the_bytes_of_a_command_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}" for number in range(8)]
    for path in paths:
        path.write_bytes(b"x" * 10_000_000)
    with reading("verify", 80_000_000):
        bar = progress._reading
        assert bar is not None
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(checksum, paths))
        assert bar._done == 80_000_000
    assert progress._reading is None
    checksum(paths[0])
    assert bar._done == 80_000_000
