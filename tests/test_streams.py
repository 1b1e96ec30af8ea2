"""No loss of an output channel stops the work; real descriptors, each broken as it breaks in use."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_kaiyuan import streams

# Prints on every way there is, then leaves a file: the work.
WORK = """
import logging, os, sys
from pathlib import Path
from tqdm import tqdm
from megatron_kaiyuan.streams import {how} as install
install()
opened = open({path!r}, "w")
for number in range(200):
    print("to standard output", number, "\\u4e2d\\u6587", flush=True)
    print("to standard error", number, file=sys.stderr, flush=True)
    logging.getLogger("test").warning("to a handler %d", number)
for _ in tqdm(range(20), mininterval=0):
    pass
os.write(2, b"from C code") if {raw} else None
opened.write("done")
opened.close()
"""


def work(folder: Path, how: str = "survive_lost_output", raw: bool = False) -> list[str]:
    return [sys.executable, "-c", WORK.format(how=how, path=str(folder / "work"), raw=raw)]


def dead_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def vanished_terminal() -> int:
    master, terminal = pty.openpty()
    os.close(master)
    return terminal


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def not_blocking() -> int:
    """A pipe that another process has switched so, with a reader that has gone after the first lines."""
    writer = dead_pipe()
    os.set_blocking(writer, False)
    return writer


@pytest.mark.parametrize("broken", [dead_pipe, vanished_terminal, full_disk, not_blocking])
@pytest.mark.parametrize("how", ["survive_lost_output", "make_output_optional"])
def test_work_is_done_whatever_becomes_of_its_output(broken, how: str, tmp_path: Path) -> None:
    channel = broken()
    done = subprocess.run(work(tmp_path, how), stdout=channel, stderr=channel, timeout=60)
    os.close(channel)
    assert (done.returncode, (tmp_path / "work").read_text()) == (0, "done")


def test_closed_descriptors_are_not_given_to_the_next_file(tmp_path: Path) -> None:
    line = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", line, "bash", *work(tmp_path, raw=True)], timeout=60)
    assert (done.returncode, (tmp_path / "work").read_text()) == (0, "done")


def test_an_encoding_that_lacks_a_name(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(work(tmp_path), capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0 and "0 \\u4e2d\\u6587" in done.stdout


def test_what_can_be_written_is_written_in_order(tmp_path: Path) -> None:
    done = subprocess.run(work(tmp_path), capture_output=True, text=True, timeout=60, encoding="utf-8")
    expected = "".join(f"to standard output {number} 中文\n" for number in range(200))
    assert (done.returncode, done.stdout) == (0, expected)


def test_a_reader_that_hangs_is_waited_for_once_and_finds_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.2)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)
    channel = streams.Channel(writer)
    channel.optional = True
    began = time.monotonic()
    for _ in range(100):
        assert channel.write(b"x" * 1000) == 1000
    assert 0.2 <= time.monotonic() - began < 2
    taken = os.read(reader, 1 << 20)
    channel.write(b"again")
    after = os.read(reader, 1 << 20).decode()
    lost = 100_000 - len(taken)
    assert after == f"\nwarning: {lost} bytes of output could not be written here and are lost\nagain"
    os.close(reader)
    os.close(writer)


def test_output_that_matters_waits_for_its_reader(tmp_path: Path) -> None:
    """As `| less`: nothing is dropped."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen(work(tmp_path), stdout=writer, stderr=subprocess.DEVNULL) as process:
        os.close(writer)
        time.sleep(1)
        assert process.poll() is None and select.select([reader], [], [], 0)[0]
        content = b""
        while piece := os.read(reader, 1 << 16):
            content += piece
        assert process.wait(60) == 0
    os.close(reader)
    assert content.decode().count("to standard output") == 200
