"""One node whose own name does not resolve, with an empty hosts file and a name server that never answers. Needs root.

bash tests/run.sh -m root tests/launch/test_no_names.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes.launched import launched, started
from tests.helpers.training.small_run import metrics

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
]

# A resolver asks such a server twice, for 5 seconds each (resolv.conf(5)); at its worst torch waited ten minutes.
SILENT_SERVER = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 53)); s.recvfrom(1)"
MACHINE = """
ip link set lo up
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
echo nowhere >/proc/sys/kernel/hostname
"{python}" -c "{server}; s.recvfrom(1); import time; time.sleep(600)" >/dev/null 2>&1 &
exec "$@"
"""
SECONDS = 240


@pytest.fixture
def machine(tmp_path: Path) -> list[str]:
    """A command that runs another one on such a machine."""
    if not shutil.which("ip") or subprocess.run(["unshare", "--net", "--uts", "--mount", "true"]).returncode:
        pytest.fail("a machine without names is a namespace: run this as root, with iproute2 installed", pytrace=False)
    (tmp_path / "hosts").write_text("")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    script = MACHINE.format(folder=tmp_path, python=sys.executable, server=SILENT_SERVER)
    return ["unshare", "--net", "--uts", "--mount", "--kill-child", "bash", "-c", script, "bash"]


@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
def test_a_run_begins_and_ends(script: str, machine: list[str], recipe: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    run_dir = tmp_path / "run"
    with launched(script, "--nproc-per-node", 2, recipe, f"run_dir={run_dir}", inside=machine) as job:
        code, _, errors = job.finish()
    assert code == 0, errors
    assert max(metrics(run_dir)) == 20 and time.monotonic() - began < SECONDS


def test_doctor_reports_the_name(machine: list[str], tmp_path: Path) -> None:
    with started([*machine, sys.executable, "-m", "megatron_kaiyuan.cli", "doctor"], None, tmp_path) as job:
        _, output, _ = job.finish()
    assert "the host's own name, nowhere, is not known here" in output
