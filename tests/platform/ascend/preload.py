"""On import: what a process on the simulated node needs, for the fork server of tests (`tests/rank_server.py`).

The device is not touched, so that a fork can still be a node of any chip.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys

from tests.platform.ascend import stubs, wheel

sys.path.insert(0, str(wheel.unpacked()))
os.environ.update(TORCH_DEVICE_BACKEND_AUTOLOAD="0", **stubs.cann_environment())
for _library in (stubs.LIBRARY, *stubs.OTHERS):
    # Found by name from then on: of libraries that are loaded, the system's loader asks for no path.
    ctypes.CDLL(str(stubs.built() / _library), ctypes.RTLD_GLOBAL)

# What transfer_to_npu imports takes longer than all else.
for _module in ("torch_npu", "torch._inductor.compile_fx", "torch_npu.utils._dynamo"):
    importlib.import_module(_module)
