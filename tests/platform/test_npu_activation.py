"""What activation decides on each chip, over the real torch_npu (`tests/helpers/ascend`); few processes, as each takes
seconds to import what transfer_to_npu patches."""

from __future__ import annotations

import textwrap

from tests.helpers.ascend import machine

DECIDED = """
    import torch
    from megatron_kaiyuan import platform
    npu = platform.activate("npu", local_rank=1)
    assert npu.device == torch.device("npu", 1) and npu.chip.name == "Ascend910A"
    assert npu.precisions == ("fp32", "fp16") and npu.keeps_overflow and npu.compiles_operators
    assert not npu.has_fused_adamw and not npu.fused_attention and npu.products_round_fp32
    assert list(npu.fused) == ["norm"]
    assert npu.findings["norm"] == "npu_rms_norm agrees with torch, forward and backward"
    assert npu.findings["swiglu"] == "npu_swiglu is not for Ascend910A"
    assert npu.findings["optimizer"] == "CANN has no fused AdamW kernel for Ascend910A"
    # It is registered all the same.
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", "PrivateUse1")
    assert torch.cuda.get_device_capability() == (7, 5)
"""
NOTHING_COMPILED = """
    import inspect, sys
    import megatron_kaiyuan.train.start
    compiled = [
        f"{module}.{name}"
        for module, content in list(sys.modules.items()) if module.startswith("megatron.")
        for name, value in list(vars(content).items())
        if inspect.isfunction(value) and hasattr(value, "_torchdynamo_orig_callable")
    ]
    assert compiled == [], compiled
"""
# It remembers an overflow until it is cleared, and the host need not wait for the answer.
REGISTER = """
    large = torch.full((4,), 60000.0, dtype=torch.float16, device=npu.device)
    for _ in range(2):
        npu.clear_overflow()
        flag = npu.overflow_flag()
        assert flag.device == npu.device and flag.dtype == torch.float32 and flag.shape == ()
        assert flag.item() == 0.0
        large + large
        assert npu.overflow_flag().item() == 1.0 and npu.overflowed()
"""
# The host does not wait for a copy.
PINNED = """
    import numpy as np
    from types import SimpleNamespace
    from torch.utils._python_dispatch import TorchDispatchMode
    from megatron_kaiyuan.train.batch import GlobalBatch

    class Copies(TorchDispatchMode):
        seen = []
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if func._schema.name == "aten::_to_copy":
                self.seen.append((args[0].device.type, args[0].is_pinned(), kwargs.get("non_blocking")))
            return func(*args, **kwargs)

    tokens = np.arange(12).reshape(2, 6)
    with Copies() as copies:
        moved = GlobalBatch._to_device(SimpleNamespace(_device=npu.device), tokens)
    assert copies.seen == [("cpu", True, True)], copies.seen
    assert moved.device == npu.device and np.array_equal(moved.cpu().numpy(), tokens)
"""


def succeeds(*code: str, **node: object) -> machine.Done:
    done = machine.python("-c", "".join(map(textwrap.dedent, code)), **node)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_a_910a() -> None:
    done = succeeds(DECIDED, NOTHING_COMPILED, REGISTER, PINNED)
    assert "device capability" not in done.stderr


def test_a_later_chip() -> None:
    """With a capability that the user has set."""
    succeeds(
        """
        import torch
        from megatron_kaiyuan import platform
        npu = platform.activate("npu")
        assert npu.precisions == ("fp32", "bf16", "fp16") and not npu.keeps_overflow and not npu.compiles_operators
        assert npu.has_fused_adamw and npu.fused_attention and not npu.products_round_fp32
        assert list(npu.fused) == ["norm", "swiglu"], npu.findings
        npu.clear_overflow()
        assert npu.overflow_flag() is None and not npu.overflowed()
        assert torch.cuda.get_device_capability() == (8, 0)
        """,
        soc="Ascend910B3",
        environment={"TORCH_NPU_DEVICE_CAPABILITY": "8.0"},
    )


def test_a_capability_that_is_none() -> None:
    code = "from megatron_kaiyuan import platform; platform.activate('npu')"
    done = machine.python("-c", code, environment={"TORCH_NPU_DEVICE_CAPABILITY": "8"})
    assert "TORCH_NPU_DEVICE_CAPABILITY is '8'; unset it, or set it to two numbers as 7.5" in done.stderr


def test_a_kernel_that_fails_leaves_the_task_queue_alone() -> None:
    """A child tried it. The same kernel called in this process silences all that follows."""
    succeeds(
        """
        import contextlib, torch, torch_npu
        from megatron_kaiyuan import platform
        npu = platform.activate("npu")
        assert npu.fused == {}
        assert npu.findings["norm"].startswith("npu_rms_norm fails in fp32 ("), npu.findings
        ones = torch.ones(4, 4, device="npu")
        assert (ones + ones).sum().item() == 32

        with contextlib.suppress(RuntimeError):
            torch_npu.npu_rms_norm(ones, ones[0])[0].cpu()
        # Another number than before, which still lies in the memory that is used again.
        assert (ones * 3).sum().item() != 48
        """,
        failing=("RmsNorm",),
        task_queue=True,
    )
