"""The machine a rank runs on: `cpu`, `cuda` or `npu`, with one small interface.

Nothing happens on import. `activate()` makes one platform current for the process; it is the only call
that touches torch.cuda or torch_npu, and the only one that may patch megatron-core. Call it before
megatron-core is imported.
"""

from __future__ import annotations

import importlib
import warnings

from megatron_kaiyuan.platform.base import Platform

__all__ = ["Platform", "activate", "current", "emulated"]

# megatron-core 0.16 says these on every start; none of them is for the user to act on.
_KNOWN_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    r"The \.grad attribute of a Tensor that is not a leaf",
    r"`torch\.distributed\.\w+` is deprecated",
    "`load_state_dict` is deprecated",
    "Please use DTensor instead and we are deprecating ShardedTensor",
    "full scope is deprecated",
)

_current: Platform | None = None


def activate(name: str = "auto", local_rank: int = 0, local_world_size: int = 1, mindspeed: bool = False) -> Platform:
    """Make a platform current and return it.

    Args:
        name: `cpu`, `cuda`, `npu`, or `auto` for the first accelerator that is there, and `cpu` on a node without any.
        local_rank: index of this process on its node; selects the device.
        local_world_size: processes on this node, which share its cores.
        mindspeed: on `npu`, load MindSpeed's adaptor over megatron-core.

    Raises:
        UserError: the named device or the package that drives it is missing, or another platform is active.
    """
    global _current
    from megatron_kaiyuan.platform import choose, lean_imports

    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    if _current is None:
        chosen = choose.platform_named(name, mindspeed)
        with lean_imports.without_trackers():
            chosen.activate(local_rank, local_world_size)
            _import_megatron()
            chosen.adapt_megatron()
        _current = chosen
    elif name not in ("auto", _current.name):
        from megatron_kaiyuan.errors import UserError

        raise UserError(f"platform {name!r} was asked for, but this process already runs on {_current.name!r}")
    return _current


def _import_megatron() -> None:
    try:
        importlib.import_module("megatron.core")
    except (ImportError, OSError) as error:
        # It does without Transformer Engine where a module of it is missing, not where a library of it is.
        from megatron_kaiyuan.errors import UserError

        raise UserError(
            f"Megatron Core cannot be imported ({error}): install what is missing, or uninstall what asks for it "
            "(pip uninstall transformer-engine)"
        ) from error


def current() -> Platform:
    """The active platform.

    Raises:
        RuntimeError: `activate()` was not called.
    """
    if _current is None:
        raise RuntimeError("megatron_kaiyuan.platform.activate() must run first")
    return _current


def emulated() -> tuple[str, ...]:
    """`Platform.emulated`; none in a process that activated no platform."""
    return () if _current is None else _current.emulated
