"""A process that binds itself, on nodes that are folders with this machine's own cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kaiyuan.platform.numa import bound_by_launcher, share

CORES = sorted(os.sched_getaffinity(0))
UUID = "9d0c1bd8-0000-4c53-a7a5-c86c0b7f5f9a"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two NUMA nodes with one core each, a third without any, and a GPU of the second."""
    if len(CORES) < 2:
        pytest.skip("there is one core")
    gpu = "0000:c1:00.0"
    files = {
        "sys/devices/system/node/node0/cpulist": f"{CORES[0]}\n",
        "sys/devices/system/node/node1/cpulist": f"{CORES[1]}-{CORES[1]}\n",
        "sys/devices/system/node/node2/cpulist": "\n",
        f"proc/driver/nvidia/gpus/{gpu}/information": f"Model: NVIDIA H100\nGPU UUID: \t GPU-{UUID}\n",
        f"sys/bus/pci/devices/{gpu}/numa_node": "1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def bound(call: str, machine: Path, **environ: str) -> list[str]:
    """What a call answers in a process of its own, and the cores of each of its threads after it."""
    code = f"""
import os, threading
from pathlib import Path
from megatron_kaiyuan.platform.numa import bind_beside_gpu, bind_to_share
threading.Thread(target=threading.Event().wait, daemon=True).start()
print({call.replace("ROOT", f"Path({str(machine)!r})")})
for thread in os.listdir("/proc/self/task"):
    print(sorted(os.sched_getaffinity(int(thread))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environ}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_rank_beside_its_gpu(machine: Path) -> None:
    call = f"bind_beside_gpu('{UUID}', os.environ, ROOT)"
    assert bound(call, machine) == ["the 1 cores of NUMA node 1, the GPU's", *[f"[{CORES[1]}]"] * 2]
    assert bound(call, machine, KAIYUAN_NUMA_BIND="0") == ["None", *[str(CORES)] * 2]
    assert bound(call, machine, SLURM_CPU_BIND_TYPE="mask_cpu:")[0] == "None"
    (machine / "sys/bus/pci/devices/0000:c1:00.0/numa_node").write_text("-1\n")
    assert bound(call, machine) == ["None", *[str(CORES)] * 2]


def test_gpu_that_the_driver_does_not_list(machine: Path) -> None:
    assert bound("bind_beside_gpu('another', os.environ, ROOT)", machine)[0] == "None"


def test_ranks_on_processors_share_the_nodes(machine: Path) -> None:
    for rank in range(2):
        printed = bound(f"bind_to_share({rank}, 2, os.environ, ROOT)", machine)
        assert printed == [f"the 1 cores of NUMA node {rank}", *[f"[{CORES[rank]}]"] * 2]
    assert bound("bind_to_share(0, 1, os.environ, ROOT)", machine) == ["None", *[str(CORES)] * 2]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 13])
def test_shares_cover_the_nodes_in_order(nodes: int, ranks: int) -> None:
    shares = [share(list(range(nodes)), rank, ranks) for rank in range(ranks)]
    assert all(shares) and sorted({node for one in shares for node in one}) == list(range(nodes))
    assert shares == sorted(shares)
    if ranks <= nodes:
        assert [node for one in shares for node in one] == list(range(nodes))


@pytest.mark.parametrize(
    ("own", "launcher", "environ", "expected"),
    [
        ({0, 1, 2, 3}, {0, 1, 2, 3}, {}, False),
        ({0, 1}, {0, 1, 2, 3}, {}, True),  # mpirun --bind-to socket
        ({0, 1}, {0, 1, 2, 3}, {"SLURM_STEP_ID": "0"}, False),  # the step's cores, for all of its tasks
        ({0, 1}, {0, 1, 2, 3}, {"SLURM_STEP_ID": "0", "SLURM_CPU_BIND_TYPE": "mask_cpu:"}, True),
        ({0, 1}, {0, 1, 2, 3}, {"SLURM_STEP_ID": "0", "SLURM_CPU_BIND_TYPE": "none"}, False),
    ],
)
def test_launcher_that_binds(own: set[int], launcher: set[int], environ: dict[str, str], expected: bool) -> None:
    assert bound_by_launcher(own, launcher, environ) == expected
