"""Processes that end with their parent: real ones, whose parents are killed in all the ways that matter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_kaiyuan.cluster.parent import VARIABLE

# A rank: it leaves its process id, and another file once it is guarded.
RANK = """
import os, pathlib, sys, time
from megatron_kaiyuan.cluster.parent import end_with_launcher
folder = pathlib.Path(sys.argv[1])
(folder / "started").write_text(str(os.getpid()))
while (folder / "hold").exists():
    time.sleep(0.01)
end_with_launcher(os.environ)
(folder / "guarded").touch()
time.sleep(100)
"""
# Launchers: how they start a rank. `command` and `environment` are the rank's.
IN_MAIN_THREAD = "subprocess.Popen(command, env=environment)"
IN_A_THREAD = """
thread = threading.Thread(target=lambda: subprocess.Popen(command, env=environment))
thread.start()
thread.join()
"""
BEHIND_A_WRAPPER = """subprocess.Popen(["sh", "-c", '"$@"; true', "sh", *command], env=environment)"""
LAUNCHER = """
import os, subprocess, sys, threading, time
command = [sys.executable, "-c", {rank!r}, {folder!r}]
environment = {{**os.environ, **{variables}}}
{start}
time.sleep(100)
"""


def wait_for(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def launch(folder: Path, start: str, variables: str) -> subprocess.Popen[bytes]:
    program = LAUNCHER.format(rank=RANK, folder=str(folder), start=start, variables=variables)
    return subprocess.Popen([sys.executable, "-c", program])


@pytest.mark.parametrize("start", [IN_MAIN_THREAD, IN_A_THREAD])
@pytest.mark.parametrize("process_id", ["os.getpid()", "0"])
def test_rank_ends_with_a_killed_launcher(start: str, process_id: str, tmp_path: Path) -> None:
    launcher = launch(tmp_path, start, f"{{{VARIABLE!r}: str({process_id})}}")
    wait_for((tmp_path / "guarded").exists)
    rank = int((tmp_path / "started").read_text())
    # The thread that has started it, if there was one, has ended.
    time.sleep(0.2)
    assert runs(rank)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not runs(rank))


def test_launcher_that_died_before_the_guard(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    launcher = launch(tmp_path, IN_MAIN_THREAD, f"{{{VARIABLE!r}: str(os.getpid())}}")
    wait_for(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text())
    rank = int((tmp_path / "started").read_text())
    launcher.kill()
    launcher.wait()
    (tmp_path / "hold").unlink()
    wait_for(lambda: not runs(rank))
    assert not (tmp_path / "guarded").exists()


def test_a_wrapper_between_them_is_no_dead_launcher(tmp_path: Path) -> None:
    launcher = launch(tmp_path, BEHIND_A_WRAPPER, f"{{{VARIABLE!r}: str(os.getpid())}}")
    wait_for((tmp_path / "guarded").exists)
    rank = int((tmp_path / "started").read_text())
    time.sleep(0.2)
    assert runs(rank)
    os.kill(rank, signal.SIGKILL)
    launcher.kill()
    launcher.wait()


def test_who_does_not_ask_for_it_outlives_its_launcher(tmp_path: Path) -> None:
    launcher = launch(tmp_path, IN_MAIN_THREAD, "{}")
    wait_for((tmp_path / "guarded").exists)
    rank = int((tmp_path / "started").read_text())
    launcher.kill()
    launcher.wait()
    time.sleep(0.5)
    assert runs(rank)
    os.kill(rank, signal.SIGKILL)


def test_command_ends_with_its_parent(tmp_path: Path) -> None:
    """As the launch scripts start what they run; it gets SIGTERM, so that it can save."""
    program = f"trap 'touch {tmp_path}/told; exit' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    line = f'{sys.executable} -m megatron_kaiyuan.cluster.parent $$ bash -c "{program}" & wait'
    shell = subprocess.Popen(["bash", "-c", line])
    wait_for((tmp_path / "ready").exists)
    shell.kill()
    shell.wait()
    wait_for((tmp_path / "told").exists)
