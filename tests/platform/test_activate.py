"""The device layer acts only when it is asked to, in a fresh process each time."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)


def succeeds(code: str) -> None:
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_takes_neither_torch_nor_a_device() -> None:
    succeeds("""
        import sys
        import megatron_kaiyuan, megatron_kaiyuan.cli, megatron_kaiyuan.config, megatron_kaiyuan.data.stream
        assert "torch" not in sys.modules and "megatron.core" not in sys.modules
    """)


def test_importing_the_platforms_patches_nothing() -> None:
    succeeds("""
        import torch
        before = torch.Tensor.cuda, torch.Tensor.type
        from megatron_kaiyuan import platform
        from megatron_kaiyuan.platform import base, choose, cpu, cuda, npu
        import megatron.core.optimizer.optimizer as optimizer
        assert optimizer.torch is torch
        assert (torch.Tensor.cuda, torch.Tensor.type) == before
        try:
            platform.current()
        except RuntimeError:
            pass
        else:
            raise SystemExit("current() before activate()")
    """)


def test_cpu_leaves_torch_itself_alone() -> None:
    succeeds("""
        import torch
        from megatron_kaiyuan import platform
        cpu = platform.activate("cpu")
        assert cpu.device.type == "cpu" and platform.current() is platform.activate("auto")
        import megatron.core.optimizer.optimizer as optimizer
        assert optimizer.torch is not torch and optimizer.torch.nn is torch.nn
        assert optimizer.torch.zeros(2, device="cuda").device.type == "cpu"
        assert optimizer.torch.cuda.current_device() == "cpu"
        try:
            torch.zeros(2, device="cuda")
        except (AssertionError, RuntimeError):
            pass
        else:
            assert torch.cuda.is_available()
        assert torch.zeros(1).type() == "torch.FloatTensor"
    """)


def test_cuda_patches_nothing() -> None:
    """With a GPU that is only claimed: selecting the device is all that happens."""
    succeeds("""
        import torch
        chosen = []
        torch.cuda.device_count = lambda: 2
        torch.cuda.set_device = chosen.append
        from megatron_kaiyuan import platform
        before = torch.Tensor.cuda, torch.Tensor.type, torch.zeros
        assert platform.activate("cuda", local_rank=1).device == torch.device("cuda", 1)
        import megatron.core.optimizer.optimizer as optimizer
        import megatron.core.tensor_parallel.random as random
        assert chosen == [torch.device("cuda", 1)]
        assert optimizer.torch is torch and random.torch is torch
        assert random._get_cuda_rng_state.__module__ == random.__name__
        assert (torch.Tensor.cuda, torch.Tensor.type, torch.zeros) == before
    """)


def test_missing_devices_and_packages_are_one_line() -> None:
    for name, expected in (("cuda", "no GPU"), ("npu", "[npu]"), ("tpu", "unknown")):
        done = run(f"""
            import torch
            torch.cuda.device_count = lambda: 0
            from megatron_kaiyuan import platform
            from megatron_kaiyuan.errors import UserError
            try:
                platform.activate({name!r})
            except UserError as error:
                print(error)
        """)
        assert expected in done.stdout and len(done.stdout.splitlines()) == 1, done.stderr


def test_a_process_has_one_platform() -> None:
    done = run("""
        from megatron_kaiyuan import platform
        platform.activate("cpu")
        platform.activate("cuda")
    """)
    assert "already runs on 'cpu'" in done.stderr
