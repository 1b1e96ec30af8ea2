"""The launcher with real workers: what it prints, its exit code, and that no process is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes.rank_server import run, started
from tests.helpers.processes.ranks import free_port

# In a fork that has imported torch, but for nohup; the workers are fresh processes.
LAUNCHER = ["-m", "megatron_kaiyuan.cluster.torchrun", "--standalone", "--nproc-per-node", "2"]

# Each worker leaves its process id, so that the test can see that it is gone.
PROLOGUE = """
import os, pathlib, signal, sys, time
rank = os.environ["RANK"]
folder = pathlib.Path(sys.argv[1])
(folder / f"pid_{rank}").write_text(str(os.getpid()))
"""


def _words(folder: Path, program: str) -> list[object]:
    script = folder / "worker.py"
    script.write_text(PROLOGUE + program)
    return [*LAUNCHER, script, folder]


def _run(folder: Path, program: str) -> tuple[int, str]:
    done = run(1, _words(folder, program), imported="torch")
    return done.returncode, done.stderr


def _worker_pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("pid_*") if path.read_text()]


def _wait_for_two(folder: Path, what: str) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(f"{what}_*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_success_is_silent(tmp_path: Path) -> None:
    assert _run(tmp_path, "") == (0, "")


def test_users_mistake_is_said_once(tmp_path: Path) -> None:
    program = """
if rank == "1":
    print("error: no such file", file=sys.stderr)
    sys.exit(2)
time.sleep(60)
"""
    assert _run(tmp_path, program) == (2, "error: no such file\n")
    assert not any(map(_is_alive, _worker_pids(tmp_path)))


def test_failed_rank_is_one_line(tmp_path: Path) -> None:
    program = """
if rank == "1":
    sys.exit(7)
time.sleep(60)
"""
    assert _run(tmp_path, program) == (7, "error: rank 1 ended with exit code 7\n")


def test_killed_rank_counts_before_one_that_lost_it(tmp_path: Path) -> None:
    """Rank 0 ends by itself at once, before the launcher looks at either."""
    program = """
if rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
other = folder / "pid_1"
while not other.exists() or not other.read_text():
    pass
while ") Z " not in pathlib.Path(f"/proc/{other.read_text()}/stat").read_text():
    pass
sys.exit(1)
"""
    code, errors = _run(tmp_path, program)
    assert code == 128 + signal.SIGKILL
    assert "rank 1 was ended by SIGKILL" in errors


def test_killed_rank_is_named(tmp_path: Path) -> None:
    program = """
if rank == "0":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    code, errors = _run(tmp_path, program)
    assert code == 128 + signal.SIGKILL
    assert errors.startswith("error: rank 0 was ended by SIGKILL")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signal_reaches_the_workers(tmp_path: Path, number: signal.Signals) -> None:
    """Sent twice, as a lost terminal does: once by the kernel, once by the shell."""
    program = f"""
def save(*_):
    time.sleep(0.5)
    (folder / f"saved_{{rank}}").touch()
    sys.exit(0)
signal.signal({int(number)}, save)
(folder / f"ready_{{rank}}").touch()
time.sleep(60)
"""
    with started(1, _words(tmp_path, program), imported="torch") as launcher:
        _wait_for_two(tmp_path, "ready")
        sent = time.monotonic()
        launcher.send_signal(number)
        time.sleep(0.2)
        launcher.send_signal(number)
        assert (launcher.wait(60), launcher.errors()) == (128 + number, "")
    assert time.monotonic() - sent < 10
    assert len(list(tmp_path.glob("saved_*"))) == 2
    assert not any(map(_is_alive, _worker_pids(tmp_path)))


def test_workers_that_stopped_have_printed_so(tmp_path: Path) -> None:
    """Signals that reached the workers alone: the launcher's exit code is theirs, and it adds no line."""
    code, errors = _run(tmp_path, "sys.exit(143)")
    assert (code, errors) == (143, "")


def test_nohup_keeps_its_promise(tmp_path: Path) -> None:
    program = "(folder / f'ready_{rank}').touch()\ntime.sleep(3)\n(folder / f'done_{rank}').touch()"
    command = ["nohup", sys.executable, *map(str, _words(tmp_path, program))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _wait_for_two(tmp_path, "ready")
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0 and len(list(tmp_path.glob("done_*"))) == 2


def test_two_nodes_by_static_rendezvous(tmp_path: Path) -> None:
    """The arguments that launch/torchrun.sh gives for several nodes: ranks follow the node's number."""
    endpoint = f"127.0.0.1:{free_port()}"
    script = tmp_path / "worker.py"
    script.write_text(PROLOGUE + "(folder / f'node_{sys.argv[2]}_rank_{rank}').touch()")
    arguments = ["--nnodes", "2", "--rdzv-backend", "static", "--rdzv-endpoint", endpoint, "--nproc-per-node", "1"]
    with contextlib.ExitStack() as stack:
        nodes = []
        for number in (1, 0):
            words = [*LAUNCHER[:2], *arguments, "--node-rank", number, script, tmp_path, number]
            nodes.append(stack.enter_context(started(1, words, imported="torch")))
        assert [node.wait(60) for node in nodes] == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("node_*")) == ["node_0_rank_0", "node_1_rank_1"]


def test_launchers_own_trouble_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("")
    result = run(1, [*LAUNCHER[:2], "--nproc-per-node", "many", script], imported="torch")
    assert result.returncode == 1
    assert result.stderr.startswith("error: launcher: ")
    assert result.stderr.count("\n") == 1
