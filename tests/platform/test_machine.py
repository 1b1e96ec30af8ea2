"""What the simulated node of Ascend NPUs (`tests/helpers/ascend`) is: its chips, its failures, and what it records."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.helpers.ascend import machine, wheel

BEGIN = "import torch, torch_npu; torch.npu.set_device(0)\n"


def succeed(code: str, **node: object) -> machine.Done:
    done = machine.python("-c", BEGIN + textwrap.dedent(code), **node)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_a_chip_of_the_first_generation_saturates() -> None:
    """Products are computed from FP16, infinities become the largest number, NaN becomes 0; moving sets no register."""
    done = succeed(
        """
        flag, clear = torch_npu.npu.utils.get_npu_overflow_flag, torch_npu.npu.utils.clear_npu_overflow_flag
        large = torch.full((3,), 60000.0, dtype=torch.float16, device="npu")
        assert not flag()
        assert (large + large).tolist() == [65504.0] * 3 and flag() and flag()
        clear()
        assert not flag() and (large - large).tolist() == [0.0] * 3 and not flag()

        infinite = torch.tensor([float("inf"), float("nan"), 1.0]).npu()
        moved = torch.stack([infinite, infinite])[:, :2].clone()
        assert torch.where(torch.ones(2).bool().npu(), moved, moved).cpu().isfinite().sum() == 0 and not flag()
        assert (infinite * 1).tolist() == [torch.finfo(torch.float32).max, 0.0, 1.0] and flag()

        drawn = torch.randn(8, 8)
        product = drawn.npu() @ drawn.npu()
        assert torch.equal(product.cpu(), drawn.half().float() @ drawn.half().float())
        assert not torch.equal(product.cpu(), drawn @ drawn)
        clear()
        (drawn.npu() * 1e6) @ drawn.npu()
        assert flag() and not torch.npu.is_bf16_supported()
        """
    )
    assert done.register[0] == "aten::add" and done.register[-1].startswith("aten::matmul")


def test_a_later_chip_has_infinities() -> None:
    done = succeed(
        """
        large = torch.full((3,), 60000.0, dtype=torch.float16, device="npu")
        assert (large + large).isinf().all().item()
        drawn = torch.randn(8, 8)
        assert torch.equal((drawn.npu() @ drawn.npu()).cpu(), drawn @ drawn)
        assert torch.npu.is_bf16_supported() and torch.npu.get_device_name(0) == "Ascend910B2"
        """,
        soc="Ascend910B2",
    )
    assert done.register == []


def test_operators_write_what_torch_would() -> None:
    """In place, with an operand that is the result; into a slice; drawn from the device's own generator."""
    succeed(
        """
        given = torch.arange(6.0)
        for values in (given, given.npu()):
            values = values.clone()
            values.mul_(values)
            values[1:3] += values[4:]
            values.view(2, 3)[:, 1].fill_(7)
            values[values == 25] = 5
            assert values.tolist() == [0.0, 7.0, 29.0, 9.0, 7.0, 5.0], values
        host = torch.get_rng_state()
        state = torch.npu.get_rng_state()
        first, second = (torch.randn(100, device="npu").cpu() for _ in range(2))
        torch.npu.set_rng_state(state)
        assert torch.equal(torch.randn(100, device="npu").cpu(), first) and not torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), host)
        """
    )


UPDATE = """
    weight, gradient = torch.randn(5), torch.randn(5)
    updated = []
    for device in ("cpu", "npu"):
        parameter = torch.nn.Parameter(weight.clone().to(device))
        parameter.grad = gradient.to(device)
        torch.optim.AdamW([parameter], lr=0.1, fused=True).step()
        updated.append(parameter.detach().cpu())
    assert torch.equal(*updated), updated
"""


def test_what_a_chip_has_no_kernel_for_fails_when_it_is_called() -> None:
    succeed(UPDATE, soc="Ascend910B2")
    done = machine.python("-c", BEGIN + textwrap.dedent(UPDATE))
    assert "ApplyAdamWV2" in done.stderr and done.returncode


def test_a_failed_operator_ends_the_task_queue() -> None:
    """As on hardware it raises once, and every later operator returns without being launched."""
    code = """
        ones = torch.ones(4, 4, device="npu")
        outcomes = []
        for _ in range(3):
            try:
                torch_npu.npu_rms_norm(ones, ones[0])[0].cpu()
                outcomes.append("returned")
            except RuntimeError:
                outcomes.append("raised")
        print(outcomes, (ones + ones).sum().item() == 32)
    """
    queued = succeed(code, failing=["RmsNorm"], task_queue=True)
    assert queued.stdout == "['raised', 'returned', 'returned'] False\n"
    assert succeed(code, failing=["RmsNorm"]).stdout == "['raised', 'raised', 'raised'] True\n"
    assert succeed(code, task_queue=True).stdout == "['returned', 'returned', 'returned'] True\n"


def test_operators_that_fall_back_to_the_cpu_are_seen() -> None:
    """One that torch_npu has no kernel for, and one whose kernel computes on the CPU."""
    done = succeed("torch.linalg.eigvalsh(torch.eye(3).npu()); torch.ones(2).npu().isneginf()")
    assert done.fallbacks == {"aten._linalg_eigh.eigenvalues", "aten.isneginf.out"}
    assert done.operators["aten.isneginf.default"] == {("float32",)}


def test_without_host_kernels_nothing_is_computed() -> None:
    done = succeed("assert (torch.ones(64).npu() + 1).cpu().isnan().any()", host_kernels=False)
    assert done.operators == {}


def test_a_process_that_a_program_starts_computes_too() -> None:
    """What it calls does not count as the program's."""
    child = f"{BEGIN}print((torch.ones(3).npu() + 1).tolist())"
    done = machine.python(
        "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    assert done.stdout.endswith("[2.0, 2.0, 2.0]\n"), done.stderr[-3000:]
    assert done.operators == {}


def test_a_wheel_that_is_not_to_be_had_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"torch-npu==2\.13\.0 cannot be downloaded.*No matching distribution"):
        wheel.unpacked()
    assert [path.suffix for path in (tmp_path / "megatron_kaiyuan" / "ascend").iterdir()] == [".lock"]
