"""Python imports this at its start where the folder is on the path: npu operators are computed from torch_npu's import on.

It is for processes that a program under test starts; `rank.py` prepares the program itself.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any


class _AfterTorchNpu(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "torch_npu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                from tests.platform.ascend import rank

                atexit.register(rank.enter())

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("ASCEND_HOST_KERNELS") == "1":
    sys.meta_path.insert(0, _AfterTorchNpu())
