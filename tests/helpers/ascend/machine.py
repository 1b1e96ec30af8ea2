"""A simulated node of Ascend NPUs: programs run over the real torch_npu, without hardware and without CANN.

    done = machine.python("-m", "megatron_kaiyuan.cli", "train", recipe, "platform=npu", ranks=2, soc="Ascend910B2")

What is real: torch_npu's wheel of the pinned version, its patches of torch, dispatcher, autograd, allocator, task queue
and ProcessGroupHCCL. What is not: CANN and HCCL, which are C stubs, and the kernels, which the host computes. Nothing
here says how fast something is, nor what a kernel of Huawei's rounds.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.ascend import stubs, wheel
from tests.helpers.processes.rank_server import run

_SITE = Path(__file__).with_name("site")
_ROOT = Path(__file__).parents[3]
_DEVICES = 8
_ON_CPU = re.compile(r"kernel \[(\S+)\] is not supported by NPU currently\. Now this kernel is running on CPU")


@dataclass(frozen=True)
class Done:
    """A program that has ended.

    Attributes:
        returncode: the first one by rank that is not 0.
        operators: torch's and torch_npu's operators by name, each with the combinations of types of its npu tensors.
        register: operators that set the float status of a chip of the first generation, in order, by rank.
        fallbacks: operators that torch_npu has no kernel for, which it computes on the CPU.
    """

    returncode: int
    stdout: str
    stderr: str
    operators: dict[str, set[tuple[str, ...]]]
    register: list[str]
    fallbacks: set[str]


def python(
    *program: object,
    ranks: int = 1,
    soc: str = "Ascend910A",
    devices: int = _DEVICES,
    failing: Sequence[str] = (),
    task_queue: bool = False,
    host_kernels: bool = True,
    trial_in_child: bool = True,
    path: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> Done:
    """Run a Python program (`-m module`, `-c code` or a file, and its arguments) on ranks of one node.

    Args:
        soc: the chip, as CANN names it.
        devices: NPUs of the node.
        failing: CANN's operators (`RmsNorm`) that the chip has no kernel for: they fail when they are launched.
        task_queue: launch operators from torch_npu's own thread, as on hardware; else in the thread that calls them.
        host_kernels: compute what operators compute. Without, their results are what was in the memory before.
        trial_in_child: let platform npu try fused kernels in a child process, which imports torch anew; else the same
            kernels are tried in the rank itself.
        path: folders of packages that come before all others.
        environment: variables on top of this process's.

    Raises:
        RuntimeError: torch_npu's wheel is not to be had, or there is no C compiler.
        TimeoutError: the program did not end.
    """
    with tempfile.TemporaryDirectory(prefix="ascend") as folder:
        variables = {
            **os.environ,
            **node(soc, devices, failing, path),
            "ASCEND_RECORD": folder,
            "ASCEND_HOST_KERNELS": str(int(host_kernels)),
            "ASCEND_TRIAL_IN_CHILD": str(int(trial_in_child)),
            "TASK_QUEUE_ENABLE": str(int(task_queue)),
            **(environment or {}),
        }
        command = ["-m", "tests.helpers.ascend.rank", *program]
        # torch_npu counts devices when it is imported.
        imported = "ascend" if devices == _DEVICES else "torch"
        done = run(ranks, command, imported=imported, environ=variables, seconds=timeout)
        records = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    operators, register, fallbacks = _joined(records)
    # Some kernels that torch_npu has registered compute on the CPU, and only say so.
    fallbacks |= {f"aten.{name}" for name in _ON_CPU.findall(done.stderr)}
    return Done(done.returncode, done.stdout, done.stderr, operators, register, fallbacks)


def node(
    soc: str = "Ascend910A", devices: int = _DEVICES, failing: Sequence[str] = (), path: Sequence[Path] = ()
) -> dict[str, str]:
    """The environment in which a Python process finds torch_npu and the simulated node."""
    paths = [*map(str, path), str(_SITE), str(wheel.unpacked()), str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **stubs.cann_environment(),
        "TASK_QUEUE_ENABLE": "0",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "ASCEND_STUB_SOC": soc,
        "ASCEND_STUB_DEVICES": str(devices),
        "ASCEND_STUB_FAILING": ",".join(failing),
    }


def _joined(records: list[dict[str, Any]]) -> tuple[dict[str, set[tuple[str, ...]]], list[str], set[str]]:
    operators: dict[str, set[tuple[str, ...]]] = {}
    for record in records:
        for name, types in record["operators"].items():
            operators.setdefault(name, set()).update(map(tuple, types))
    register = [name for record in records for name in record["register"]]
    return operators, register, {name for record in records for name in record["fallbacks"]}
