"""`kaiyuan doctor` on two ranks: collectives, clocks, a folder that both see, and ranks that are odd."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import rank_server
from tests.helpers.processes.ranks import free_port

LAUNCHER = ["-m", "megatron_kaiyuan.cluster.torchrun", "--standalone", "--nproc-per-node", "2"]
DOCTOR = ["-m", "megatron_kaiyuan.cli", "doctor", "--platform", "cpu"]
ODD = [str(Path(__file__).with_name("odd_rank.py"))]


def run(*program: str) -> subprocess.CompletedProcess[str]:
    """Fresh ranks under a launcher that is a fork."""
    return rank_server.run(1, [*LAUNCHER, *program], imported="torch")


def problems(content: dict[str, Any]) -> list[str]:
    return [one["message"] for one in content["findings"] if one["level"] == "problem"]


def test_two_ranks(tmp_path: Path) -> None:
    done = run(*DOCTOR, "--json", "--run-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr + done.stdout
    content = json.loads(done.stdout)
    assert content["ok"] and len(content["ranks"]) == 2
    facts = content["ranks"][0]
    assert facts["launcher"]["name"] == "torchrun" and facts["launcher"]["world_size"] == 2
    measured = facts["collectives"]
    assert (measured["backend"], measured["ranks"]) == ("gloo", 2)
    names = [row["operation"] for row in measured["operations"]]
    assert names == ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "point_to_point"]
    assert len(facts["exchanges"]) == 28 and "batched send and receive of bfloat16" in facts["exchanges"]
    for row in measured["operations"]:
        # Within one host: above a microsecond, below ten seconds; what moves fast enough is no disk.
        assert 1 < row["latency_us"] < 1e7
        assert 0.001 < row["gb_per_s_large"] < 1000 and 0.001 < row["gb_per_s_1mib"] < 1000
    # One host has one clock.
    clocks = facts["clocks"]
    assert abs(clocks["seconds_ahead_of_rank_0"]) <= clocks["uncertainty_seconds"] + 0.001
    assert list(tmp_path.iterdir()) == []


def test_wrong_clock_and_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    """Started by hand: rank 1 has another file system at the run folder, as on a host that does not mount it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root, and unshare")
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    doctor = [sys.executable, *ODD, "clock", "5", "--platform", "cpu", "--run-dir", str(tmp_path)]
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path), *doctor]
    other = subprocess.Popen(apart, env={**common, "RANK": "1", "LOCAL_RANK": "1"}, stdout=subprocess.PIPE)
    first = subprocess.run(
        doctor, env={**common, "RANK": "0", "LOCAL_RANK": "0"}, capture_output=True, text=True, timeout=200
    )
    printed, _ = other.communicate(timeout=60)
    assert (first.returncode, other.returncode, printed) == (1, 0, b""), first.stderr
    problems = [line for line in first.stdout.splitlines() if line.startswith("problem: ")]
    # What this machine's name leads to is not the test's.
    lines = [line for line in problems if "own name" not in line]
    assert len(lines) == 2 and "Traceback" not in first.stderr
    host = socket.gethostname()
    assert any(f"clocks: rank 1 on {host} is 5.0 seconds ahead of rank 0 on {host}" in line for line in lines)
    assert any(f"shared folder: {tmp_path} does not show a file" in line and "(rank 1)" in line for line in lines)
    # The table is there for a person, and nothing is left behind.
    assert "reduce_scatter" in first.stdout and first.stdout.endswith(f"doctor: {len(problems)} problems\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_rank_that_stops_is_no_endless_wait() -> None:
    """pytest tests/doctor -m slow; the launcher gives a stopped process 30 seconds before it kills it"""
    done = run(*ODD, "stop", "0", "--json", "--platform", "cpu", "--timeout", "10")
    # Rank 0 ends with 1; of torchrun's SIGKILL to the other nobody can tell that it came second.
    assert done.returncode == 137 and "Traceback" not in done.stderr
    found = problems(json.loads(done.stdout))
    assert any("all_reduce of 8 bytes did not end within 10 seconds" in line for line in found)
    assert any("rank 1 did not answer any more" in line for line in found)


@pytest.mark.slow
def test_missing_rank_is_one_problem() -> None:
    """pytest tests/doctor -m slow"""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, *DOCTOR, "--timeout", "3"],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert "rank 1 of 2 did not come within 3 seconds" in line
