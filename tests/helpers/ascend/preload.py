"""On import: what a process on the simulated node needs, for the fork server of tests (`processes/rank_server.py`).

The device is not touched, so that a fork can still be a node of any chip.
"""

from __future__ import annotations

import importlib
import os
import sys

from tests.helpers.ascend import stubs, wheel

sys.path.insert(0, str(wheel.unpacked()))
os.environ.update(TORCH_DEVICE_BACKEND_AUTOLOAD="0", **stubs.cann_environment())
stubs.load()

# What takes the time: torch_npu itself, and what transfer_to_npu imports to patch it, where it is installed.
for _module in ("torch_npu", "torch._inductor.compile_fx", "torch_npu.utils._dynamo", "transformers.trainer"):
    importlib.import_module(_module)
