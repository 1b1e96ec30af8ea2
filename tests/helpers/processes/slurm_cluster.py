"""A Slurm cluster on this machine, of real daemons, for as long as a test needs it.

A node has four processors and two GPUs of type h100, null devices that Slurm hands out as it does real ones.
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
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is queued again waits until its credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=30
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={controller}
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
def slurm_cluster(nodes: int = 1, more: str = "") -> Iterator[dict[str, str]]:
    """Start the daemons; yield the environment in which `sbatch` and `srun` find them.

    Args:
        nodes: one is called as this host is, several are node1, node2, ...
        more: lines for slurm.conf.
    """
    if missing := [name for name in DAEMONS if not shutil.which(name, path=SEARCH)]:
        pytest.fail(f"{', '.join(missing)} not found: as root, apt-get install slurm-wlm munge", pytrace=False)
    # Sockets have short names at most, which a test's own folder may exceed.
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        names = [f"node{number}" for number in range(1, nodes + 1)] if nodes > 1 else [_host()]
        environ = {**os.environ, "SLURM_CONF": str(_configure(folder, names, more)), "PATH": SEARCH}
        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/key"]
        munged += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/seed", f"--log-file={folder}/munged.log"]
        stack.enter_context(_daemon(munged, environ, folder))
        _wait((folder / "munge.socket").exists, "munged", folder)
        for line in (["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", node] for node in names)):
            stack.enter_context(_daemon(line, environ, folder))
        idle = ["sinfo", "-h", "-p", "all", "-N", "-t", "idle", "-o", "%N"]
        _wait(lambda: len(_output(idle, environ).split()) == nodes, "the nodes", folder)
        yield environ
        # So that no step outlives the daemons.
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environ, check=False, capture_output=True)


def wait_for_job(number: str, environ: dict[str, str], seconds: float = 300) -> None:
    """Until no task of the job is left in the queue."""
    _wait(lambda: not _output(["squeue", "-h", "-j", number], environ).strip(), f"job {number}", seconds=seconds)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _configure(folder: Path, names: list[str], more: str) -> Path:
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    (folder / "state").mkdir()
    for name in names:
        (folder / f"spool-{name}").mkdir()
    path = folder / "slurm.conf"
    host = _host()
    controller, *ports = _free_ports(1 + len(names))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Gres=gpu:h100:2 State=UNKNOWN"
        for name, port in zip(names, ports, strict=True)
    )
    content = CONFIG.format(folder=folder, host=host, user=getpass.getuser(), controller=controller, nodes=nodes)
    path.write_text(content + more)
    for number in range(2):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    devices = [f"NodeName={name} Name=gpu Type=h100 File={folder}/gpu[0-1]\n" for name in names]
    (folder / "gres.conf").write_text("".join(devices))
    # Nothing here uses control groups; left to find out their version, Slurm fails where there are none.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    return path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _daemon(line: list[str], environ: dict[str, str], folder: Path) -> Iterator[None]:
    program = shutil.which(line[0], path=SEARCH)
    assert program
    with open(folder / f"{line[0]}.out", "ab") as output:
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
