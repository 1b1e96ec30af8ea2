"""Python imports this at its start, where it finds it: once torch_npu is imported, its operators are computed.

It is for processes that a program under test starts, whose operators are not recorded; `rank.py` prepares the program
itself.
"""

from __future__ import annotations

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
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                sys.meta_path.remove(self)
                run(module)
                from tests.helpers.ascend import rank

                rank.enter()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("ASCEND_HOST_KERNELS") == "1":
    sys.meta_path.insert(0, _AfterTorchNpu())
