"""torch_npu's fused kernels tried on this rank's device, in a process of their own.

An operator that fails in torch_npu's task queue (`TASK_QUEUE_ENABLE=1`, its default) is reported once; every later
operator of that process returns without being launched, and one that hangs never returns. So a child runs the kernels
first, without the queue, and the parent only those that agreed. The child works while the parent imports Megatron Core.
Each rank tries its own device. Where kernels are compiled when first called, CANN's cache on disk
(`ACL_OP_COMPILER_CACHE_DIR`) has them from the first start on.

    python -m megatron_kaiyuan.platform.npu_trial INDEX PRECISIONS OPERATION...

prints a line of JSON for each operation.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from megatron_kaiyuan import logs
from megatron_kaiyuan.platform.npu_kernels import kernel_name, problem

# Compiling a kernel takes a first-generation chip's host up to a minute, and all ranks of a node compile at once.
TIMEOUT_SECONDS = 300.0


class Trial:
    """A child that tries kernels from now on.

    Args:
        index: of the device, among those that this process sees.
        precisions: in each of which a kernel has to agree with torch.
        operations: to try, in this order.
    """

    def __init__(self, index: int, precisions: Sequence[str], operations: Sequence[str]):
        self._operations = operations
        this = "megatron_kaiyuan.platform.npu_trial"
        # It ends with this process, however that ends.
        lifetime = [sys.executable, "-m", "megatron_kaiyuan.cluster.parent", str(os.getpid())]
        self._child = subprocess.Popen(
            [*lifetime, sys.executable, "-m", this, str(index), ",".join(precisions), *operations],
            env={**os.environ, "TASK_QUEUE_ENABLE": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A group of its own, with the compilers that CANN starts.
            start_new_session=True,
        )

    def problems(self, timeout: float = TIMEOUT_SECONDS) -> dict[str, str | None]:
        """Wait for the child; for each operation what is wrong with its kernel, as a phrase, or None.

        When it returns the child has ended, and holds no memory of the device.
        """
        try:
            output, errors = self._child.communicate(timeout=timeout)
            silence = _how_it_ended(self._child.returncode, errors)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            output, _ = self._child.communicate()
            silence = f"gave no result within {timeout:g} seconds"
        outcomes = _results(output)
        return {operation: outcomes.get(operation, silence) for operation in self._operations}


def findings(problems: Mapping[str, str | None]) -> dict[str, str]:
    """What was found, for `Platform.findings`."""
    return {
        operation: f"{kernel_name(operation)} {found or 'agrees with torch, forward and backward'}"
        for operation, found in problems.items()
    }


def _results(output: str) -> dict[str, str | None]:
    """What the child printed; libraries may print lines of their own."""
    outcomes: dict[str, str | None] = {}
    for line in output.splitlines():
        with suppress(ValueError):
            found = json.loads(line)
            outcomes |= found if isinstance(found, dict) else {}
    return outcomes


def _how_it_ended(code: int, errors: str) -> str:
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
    if code < 0:
        return f"ended its process by signal {signal.Signals(-code).name}"
    return f"could not be tried (exit code {code}{f': {last}' if last else ''})"


def main() -> None:
    """Try what the command line names."""
    import torch
    import torch_npu

    index, precisions, *operations = sys.argv[1:]
    torch_npu.npu.set_device(int(index))
    device = torch.device("npu", int(index))
    for operation in operations:
        print(json.dumps({operation: problem(torch_npu, operation, device, precisions.split(","))}), flush=True)


if __name__ == "__main__":
    logs.set_up()
    main()
