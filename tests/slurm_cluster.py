"""A Slurm cluster of one node on this machine, of real daemons, for as long as a test needs it.

The node has four processors and two GPUs of type h100, null devices that Slurm hands out as it does real ones.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
# Debian and others keep daemons where only root looks for them.
SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:h100:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is queued again waits until its credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=30
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller}
SlurmdPort={node}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
"""


@contextlib.contextmanager
def slurm_cluster() -> Iterator[dict[str, str]]:
    """Start the daemons; yield the environment in which `sbatch` and `srun` find them."""
    if missing := [name for name in DAEMONS if not shutil.which(name, path=SEARCH)]:
        pytest.fail(f"{', '.join(missing)} not found: as root, apt-get install slurm-wlm munge", pytrace=False)
    # Sockets have short names at most, which a test's own folder may exceed.
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        environ = {**os.environ, "SLURM_CONF": str(_configure(folder)), "PATH": SEARCH}
        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/key"]
        munged += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/seed", f"--log-file={folder}/munged.log"]
        stack.enter_context(_daemon(munged, environ, folder))
        _wait((folder / "munge.socket").exists, "munged", folder)
        for line in (["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            stack.enter_context(_daemon(line, environ, folder))
        _wait(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environ), "the node", folder)
        yield environ
        # So that no step outlives the daemons.
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environ, check=False, capture_output=True)


def wait_for_job(number: str, environ: dict[str, str], seconds: float = 300) -> None:
    """Until no task of the job is left in the queue."""
    _wait(lambda: not _output(["squeue", "-h", "-j", number], environ).strip(), f"job {number}", seconds=seconds)


def _configure(folder: Path) -> Path:
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    path = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    controller, node = _free_ports()
    path.write_text(CONFIG.format(folder=folder, host=host, user=getpass.getuser(), controller=controller, node=node))
    for number in range(2):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu Type=h100 File={folder}/gpu[0-1]\n")
    # Nothing here uses control groups; left to find out their version, Slurm fails where there are none.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    return path


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _daemon(line: list[str], environ: dict[str, str], folder: Path) -> Iterator[None]:
    program = shutil.which(line[0], path=SEARCH)
    assert program
    with open(folder / f"{line[0]}.out", "wb") as output:
        process = subprocess.Popen([program, *line[1:]], env=environ, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _output(line: list[str], environ: dict[str, str]) -> str:
    return subprocess.run(line, env=environ, capture_output=True, text=True, timeout=60, check=False).stdout


def _wait(condition: Callable[[], bool], what: str, folder: Path | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = [path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log"))] if folder else []
            raise TimeoutError("\n".join([f"slurm: waited in vain for {what}", *logs]))
        time.sleep(0.1)
