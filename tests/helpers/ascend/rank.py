"""One process on the simulated node: runs a Python program with operators computed by the host.

    python -m tests.helpers.ascend.rank -m megatron_kaiyuan.cli train ...

`site/sitecustomize.py` does the same in processes that such a program starts.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tests.helpers.ascend import stubs
from tests.helpers.processes.rank_server import run_as_python


def enter() -> Callable[[], None]:
    """Compute npu operators on the host from now on; what to call at the end, which writes down what was called."""
    if os.environ.get("ASCEND_HOST_KERNELS") != "1":
        return lambda: None
    import torch_npu  # noqa: F401 - it gives torch the operators

    from tests.helpers.ascend.host_kernels import HostKernels

    kernels = HostKernels(saturates=bool(ctypes.CDLL("libascendcl.so").stub_saturates()))
    kernels.__enter__()

    def write() -> None:
        (Path(os.environ["ASCEND_RECORD"]) / f"{os.getpid()}.json").write_text(json.dumps(kernels.record()))

    return write


def main() -> None:
    """Run the program of the command line on the simulated node."""
    program = sys.argv[1:]
    stubs.load()
    write, end = enter(), os._exit

    def write_and_end(code: int) -> NoReturn:
        """A rank that gives up ends this way."""
        write()
        end(code)

    os._exit = write_and_end  # type: ignore[assignment]
    if os.environ.get("ASCEND_TRIAL_IN_CHILD") == "0":
        from tests.helpers.ascend import trial_here  # noqa: F401
    try:
        run_as_python(program)
    finally:
        os._exit = end
        write()


if __name__ == "__main__":
    main()
