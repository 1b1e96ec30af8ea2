"""A job of one node: no socket of its processes can be reached from another machine."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes.launched import Job, launched, started
from tests.helpers.training.small_run import metrics

# Hundreds of steps.
LONG = ["checkpoint.save_every_steps=1000", "train.train_tokens=null"]


def open_sockets(job: Job) -> dict[str, set[str]]:
    """Addresses at which processes of the job listen, or are bound for datagrams, by what the process is."""
    found: dict[str, set[str]] = {}
    for process in job.processes():
        with contextlib.suppress(psutil.Error):
            one = psutil.Process(process)
            for connection in one.net_connections("inet"):
                is_datagram = connection.status == psutil.CONN_NONE
                if connection.laddr and (connection.status == psutil.CONN_LISTEN or is_datagram):
                    found.setdefault(" ".join(one.cmdline()[:8]), set()).add(connection.laddr.ip)
    return found


def _inside(addresses: set[str]) -> bool:
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def require_inside(job: Job, run_dir: Path, launcher: str = "no launcher") -> dict[str, set[str]]:
    """Every socket of the job, from its first step on, but for those of a launcher that is not ours to change."""
    job.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= 2)
    found = open_sockets(job)
    outside = {name: found[name] for name in found if not name.startswith(launcher) and not _inside(found[name])}
    assert not outside
    return found


@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh", "msrun.sh"])
def test_launched_ranks_listen_inside_only(script: str, recipe: Path, tmp_path: Path) -> None:
    program = script.removesuffix(".sh")
    if program == "msrun" and not shutil.which(program):
        pytest.skip("MindSpore is not installed")
    with launched(script, "--nproc-per-node", 2, recipe, f"run_dir={tmp_path}", *LONG) as job:
        # mpirun's own process, prterun, listens on every interface whatever it is told.
        found = require_inside(job, tmp_path, "prterun")
        # Ranks with each other (gloo), and a store.
        assert any("megatron_kaiyuan.cli" in name for name in found) and len(job.ranks()) == 2


def test_one_process_listens_inside_only(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_kaiyuan.cli", "train", recipe, f"run_dir={tmp_path}", *LONG]
    with started(command, None, tmp_path) as job:
        require_inside(job, tmp_path)
