"""Huawei Ascend NPUs through torch_npu. Tested on the real package over stubs of CANN; never run on the hardware.

docs/npu.md says what was read where, what is tried, and what falls back.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from typing import Any

import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform import megatron, present
from megatron_kaiyuan.platform.ascend import Chip
from megatron_kaiyuan.platform.base import Mark, NoDevice, Platform, device_index, first_line
from megatron_kaiyuan.platform.lean_imports import without_compiler
from megatron_kaiyuan.platform.npu_kernels import OPERATIONS, fused_kernel, kernel_name
from megatron_kaiyuan.platform.npu_trial import Trial, findings
from megatron_kaiyuan.platform.type_names import answer_with_cuda_type_names

# What torch.cuda.get_device_capability() answers, or None without this variable, which ends every broadcast. Paths for
# CUDA kernels begin at 8.0 or above, and below 7.5 the cuDNN that torch may bring refuses the device.
_CAPABILITY, _ANY_CAPABILITY = "TORCH_NPU_DEVICE_CAPABILITY", "7.5"
# CANN writes into the register's first element whether an operator overflowed.
_REGISTER_SIZE = 8
# A first-generation chip rounds HCCL_EXEC_TIMEOUT down to a multiple of these seconds.
_HCCL_PERIOD = 68


class NpuPlatform(Platform):
    """One NPU a rank, HCCL between them.

    Args:
        mindspeed: load MindSpeed's adaptor, which replaces parts of megatron-core.
    """

    name = "npu"
    collective_backend = "hccl"
    has_float64 = False

    def __init__(self, mindspeed: bool = False):
        super().__init__()
        self._mindspeed = mindspeed

    def activate(self, local_rank: int, local_world_size: int) -> None:
        if "megatron.core" in sys.modules:
            raise RuntimeError("platform npu must be activated before megatron.core is imported")
        _set_capability()
        torch_npu = _import_torch_npu()
        self._torch_npu, self._npu = torch_npu, torch_npu.npu
        index = _device(self._npu, local_rank, local_world_size)
        _transfer_to_npu()
        self._npu.set_device(index)
        self.device = torch.device("npu", index)
        self._describe(Chip(self.device_name()))
        trial = Trial(index, self.precisions, self.chip.tries)
        if self._mindspeed:
            _load_mindspeed()
        # Compiled functions need a compiler for NPUs. Modules imported later take the fuser that they find there.
        with without_compiler():
            importlib.import_module("megatron.core.jit").disable_jit_fuser()
            answer_with_cuda_type_names()
            megatron.give_no_advice_for_cuda()
        self._take_kernels(trial)

    def limit_collectives(self, shortest: float, longest: float) -> None:
        # After torch's own time-out the device's error would not be recorded. What the user has set stays.
        periods = int((shortest + longest) / 2 / _HCCL_PERIOD)
        os.environ.setdefault("HCCL_EXEC_TIMEOUT", str(_HCCL_PERIOD * max(1, periods)))

    def mark(self) -> Mark:
        event: Mark = self._npu.Event(enable_timing=True)
        return event

    def synchronize(self) -> None:
        self._npu.synchronize()

    def memory(self) -> tuple[int, int] | None:
        free, total = self._npu.mem_get_info()
        return int(free), int(total)

    def peak_memory_bytes(self) -> int:
        return self._npu.max_memory_allocated()

    def device_name(self) -> str:
        return str(self._npu.get_device_name(self.device.index))

    def device_names(self) -> list[str]:
        return [str(self._npu.get_device_name(index)) for index in range(self._npu.device_count())]

    def rng_state(self) -> Any:
        return self._npu.get_rng_state()

    def set_rng_state(self, state: Any) -> None:
        self._npu.set_rng_state(state)

    def clear_overflow(self) -> None:
        if self.keeps_overflow:
            self._torch_npu.npu_clear_float_status(self._register())

    def overflow_flag(self) -> torch.Tensor | None:
        if not self.keeps_overflow:
            return None
        # torch_npu's own helpers copy a buffer to the device each time, and the answer back.
        return (self._torch_npu.npu_get_float_status(self._register())[0] != 0).float()

    def _register(self) -> torch.Tensor:
        """What the operators of the register take: zeros, which an overflow is written into."""
        return torch.zeros(_REGISTER_SIZE, device=self.device)

    def _describe(self, chip: Chip) -> None:
        self.chip = chip
        if chip.first_generation:
            self.precisions = ("fp32", "fp16")
        self.has_fused_adamw = chip.has_fused_adamw
        self.fused_attention = chip.has_fused_attention
        self.products_round_fp32 = chip.products_round_fp32
        self.compiles_operators = chip.compiles_operators
        # In saturation mode, the only one of the first generation, an overflow becomes the largest number.
        self.keeps_overflow = not self._npu.utils.is_support_inf_nan()
        self.findings = {
            "attention": f"{chip.name} has {'a' if self.fused_attention else 'no'} fused attention",
            "optimizer": f"CANN has {'a' if self.has_fused_adamw else 'no'} fused AdamW kernel for {chip.name}",
            "overflow": "float status of the device" if self.keeps_overflow else "inf and NaN in gradients",
        }
        if self._mindspeed:
            self.findings["megatron-core"] = "mindspeed is set, and its adaptor was loaded"

    def _take_kernels(self, trial: Trial) -> None:
        problems = trial.problems()
        agreeing = (operation for operation, problem in problems.items() if problem is None)
        self.fused = {operation: fused_kernel(self._torch_npu, operation) for operation in agreeing}
        untried = {one: f"{kernel_name(one)} is not for {self.chip.name}" for one in OPERATIONS if one not in problems}
        self.findings |= untried | findings(problems)


def _set_capability() -> None:
    """Before torch_npu is asked, which reads the variable at each call. What the user has set stays."""
    given = os.environ.get(_CAPABILITY) or _ANY_CAPABILITY
    if not re.fullmatch(r"\d+\.\d+", given):
        raise UserError(
            f"platform npu: {_CAPABILITY} is {given!r}; unset it, or set it to two numbers as {_ANY_CAPABILITY}"
        )
    os.environ[_CAPABILITY] = given


def _import_torch_npu() -> Any:
    if importlib.util.find_spec("torch_npu") is None:
        wanted = torch.__version__.partition("+")[0]
        raise UserError(
            f"platform npu needs the package torch_npu in the version of torch: pip install torch-npu=={wanted}, "
            "or set platform=cpu"
        )
    try:
        return importlib.import_module("torch_npu")
    except Exception as error:  # what fails are compiled extensions, with errors of several kinds
        raise UserError(
            f"platform npu: torch_npu {_version('torch-npu')} cannot be imported with torch {torch.__version__} "
            f"({first_line(error)}); source CANN's set_env.sh, install the torch_npu of torch's own version, or set "
            "platform=cpu"
        ) from error


def _transfer_to_npu() -> None:
    """From here on torch.cuda is torch.npu, `device="cuda"` an NPU, and `nccl` HCCL."""
    with warnings.catch_warnings(record=True):
        # It says so at length, and would have every warning shown from then on.
        importlib.import_module("torch_npu.contrib.transfer_to_npu")
    warnings.filterwarnings("ignore", message="The return value of get_device_capability is only for compatibility")


def _device(npu: Any, local_rank: int, local_world_size: int) -> int:
    """Return the index of this rank's NPU among those that it sees."""
    count = npu.device_count() if npu.is_available() else 0
    if count == 0:
        raise NoDevice(
            "platform npu: torch_npu finds no device; check npu-smi info, CANN's set_env.sh and "
            "ASCEND_RT_VISIBLE_DEVICES, or set platform=cpu",
            whole_node=True,
        )
    together = present.for_own_tasks(os.environ, "npu") if local_rank >= count else 0
    return device_index("NPU", local_rank, count, local_world_size, together)


def _load_mindspeed() -> None:
    """Import its adaptor after transfer_to_npu and before the rest of megatron-core."""
    try:
        importlib.import_module("mindspeed.megatron_adaptor")
    except ModuleNotFoundError as error:
        if error.name not in ("mindspeed", "mindspeed.megatron_adaptor"):
            raise UserError(f"mindspeed: its adaptor needs the package {error.name!r}; install that") from error
        raise UserError(
            "mindspeed: there is no mindspeed.megatron_adaptor (PyPI's mindspeed is an empty package); install "
            "MindSpeed from Ascend's repository, see docs/npu.md, or set mindspeed=false"
        ) from error
    except Exception as error:  # it replaces functions by name, and what fails is what another version has not got
        found = _version("megatron-core")
        raise UserError(
            f"mindspeed: its adaptor does not load with megatron-core {found} ({first_line(error)}); install a "
            "MindSpeed for that version, or set mindspeed=false"
        ) from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
