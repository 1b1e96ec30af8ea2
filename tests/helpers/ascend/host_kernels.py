"""Operators of npu tensors, computed by the host: the real torch_npu runs, and a device's results are put under it.

Each operator goes through torch_npu as on hardware: its checks, its choice of a kernel, the shapes and types of what it
returns, the launch. The launch computes nothing (`cann/`). What it would have computed comes from torch's CPU kernels
or from `formulas.py`, and is written into the memory of the results.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tests.helpers.ascend import collectives, first_generation
from tests.helpers.ascend.drawing import drawing
from tests.helpers.ascend.first_generation import REGISTER, FloatStatus, of_the_register
from tests.helpers.ascend.formulas import FORMULAS
from tests.helpers.ascend.memory import as_host, on_npu

# What torch_npu does here itself: it allocates, copies whole blocks, and asks HCCL.
_ALLOCATE = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_BY_TORCH_NPU = _ALLOCATE | {
    "aten::_local_scalar_dense", "aten::_pin_memory", "aten::is_pinned", "aten::record_stream", "aten::resize_",
    "aten::set_", "npu::get_npu_format", "npu::get_storage_size",
}  # fmt: skip
_NPU = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
_COMPOSITES = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


class HostKernels(TorchDispatchMode):
    """From `__enter__` on, in this thread and in the backward passes that it starts.

    Attributes:
        operators: by operator, the types of the npu tensors it was called with.
        fallbacks: operators that torch_npu has no kernel for; it would compute them on the CPU.
        status: the register of a chip of the first generation, else None.
    """

    def __init__(self, saturates: bool) -> None:
        super().__init__()
        collectives.replace_all_gather()
        self.operators: dict[str, set[tuple[str, ...]]] = collections.defaultdict(set)
        self.fallbacks: set[str] = set()
        self._queued = os.environ.get("TASK_QUEUE_ENABLE", "1") != "0"
        self.status = FloatStatus() if saturates else None
        self._formulas: dict[str, Callable[..., Any]] = {**FORMULAS}
        if self.status is not None:
            self._formulas |= of_the_register(self.status)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if on_npu(leaf)]
        if not tensors and not any(map(_is_npu, leaves)):
            return func(*args, **kwargs)
        name = func._schema.name
        self._record(func, tensors)
        if name.startswith(("c10d::", "npu_custom_dist::")):
            answers = collectives.call(self, func, args, kwargs)
            if self.status is not None and "reduce" in name:
                # Whether HCCL's sums set the register is documented nowhere; here they do not, to be on the safe side.
                first_generation.saturate_in_place(map(as_host, tensors))
            return answers
        if func.is_view or name in _BY_TORCH_NPU:
            return func(*args, **kwargs)
        if _is_composite(func.name()):
            with self:
                return func.redispatch(_NPU, *args, **kwargs)
        if self._queued:
            torch.npu.synchronize()  # type: ignore[attr-defined]
        written = _written(func, args, kwargs)
        changed = {identity: as_host(tensor).clone() for identity, tensor in written.items()}
        on_host = [changed.get(id(leaf), _to_host(leaf)) for leaf in leaves]
        with drawing(func, leaves):
            host_args, host_kwargs = tree_unflatten(on_host, structure)
            results = self._compute(func, host_args, host_kwargs, list(changed.values()))
        by_torch_npu = not _depends_on_elements(func, tensors)
        # After the host's: torch_npu's may write to what is overwritten.
        answers = func(*args, **kwargs) if by_torch_npu else None
        if self._queued and _queue_is_dead():
            return answers
        for identity, host in changed.items():
            _write(written[identity], host, name)
        if by_torch_npu:
            return _fill(answers, results, written, name)
        return args[0] if changed else _place(results, tensors[0].device)

    def record(self) -> dict[str, Any]:
        """What was called, for a JSON file."""
        return {
            "operators": {name: sorted(types) for name, types in self.operators.items()},
            "fallbacks": sorted(self.fallbacks),
            "register": self.status.set_by if self.status is not None else [],
        }

    def _record(self, func: Any, tensors: list[torch.Tensor]) -> None:
        name = str(func)
        self.operators[name].add(tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})))
        if not _has_kernel(func.name()) and not _is_composite(func.name()):
            self.fallbacks.add(name)

    def _compute(self, func: Any, args: Any, kwargs: Any, changed: list[torch.Tensor]) -> Any:
        name = func._schema.name
        function = self._formulas.get(name, func)
        if self.status is None or name in REGISTER:
            return function(*args, **kwargs)
        args = first_generation.rounded_operands(name, args, self.status)
        results = function(*args, **kwargs)
        first_generation.saturate(name, tree_leaves((args, kwargs)), [*changed, *tree_leaves(results)], self.status)
        return results


def _is_npu(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "npu"


_has_kernel_for = torch._C._dispatch_has_kernel_for_dispatch_key


@functools.cache
def _has_kernel(name: str) -> bool:
    return _has_kernel_for(name, "PrivateUse1")


@functools.cache
def _is_composite(name: str) -> bool:
    """Whether torch makes it from others, which count for themselves: torch_npu has no kernel of its own."""
    return not _has_kernel(name) and any(_has_kernel_for(name, key) for key in _COMPOSITES)


def _depends_on_elements(func: Any, tensors: list[torch.Tensor]) -> bool:
    """Whether torch_npu's kernel asks a device for shapes: of its result, or of the elements that a mask chooses."""
    by_mask = "index_put" in func._schema.name and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    return by_mask or torch.Tag.dynamic_output_shape in func.tags


def _written(func: Any, args: Any, kwargs: Any) -> dict[int, torch.Tensor]:
    """The npu tensors that an operator changes, by id."""
    found = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            found |= {id(leaf): leaf for leaf in tree_leaves(value) if on_npu(leaf)}
    return found


def _to_host(leaf: Any) -> Any:
    if isinstance(leaf, torch.Generator) and leaf.device.type == "npu":
        return torch.default_generator
    return as_host(leaf) if on_npu(leaf) else torch.device("cpu") if _is_npu(leaf) else leaf


def _queue_is_dead() -> bool:
    """Wait for the task queue. Once a launch failed in it, no later one happens and results stay as they were."""
    torch.npu.synchronize()  # type: ignore[attr-defined]
    return bool(ctypes.c_int.in_dll(ctypes.CDLL("libascendcl.so"), "stub_failed_launch").value)


def _fill(answers: Any, results: Any, written: dict[int, torch.Tensor], name: str) -> Any:
    """torch_npu's answers with the host's results in them, but for None; a number is the host's."""
    mine, structure = tree_flatten(answers)
    theirs = tree_leaves(results)
    filled = []
    for answer, result in zip(mine, theirs, strict=True):
        if not isinstance(answer, torch.Tensor):
            filled.append(result)
            continue
        if id(answer) not in written and result is not None:
            _write(answer, result, name)
        filled.append(answer)
    return tree_unflatten(filled, structure)


def _write(answer: torch.Tensor, result: torch.Tensor, name: str) -> None:
    if answer.shape != result.shape:
        raise AssertionError(f"{name}: torch_npu gives {tuple(answer.shape)}, torch {tuple(result.shape)}")
    (as_host(answer) if on_npu(answer) else answer).copy_(result)


def _place(results: Any, device: torch.device) -> Any:
    leaves, structure = tree_flatten(results)
    placed = [torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device=device) for leaf in leaves]
    for one, leaf in zip(placed, leaves, strict=True):
        as_host(one).copy_(leaf)
    return tree_unflatten(placed, structure)
