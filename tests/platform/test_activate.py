"""The device layer acts only when it is asked to, in a process each time that has imported no more than torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.processes import rank_server


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return rank_server.run(1, ["-c", textwrap.dedent(code)], imported="torch")


def succeeds(code: str, **environment: str) -> None:
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_takes_neither_torch_nor_a_device() -> None:
    code = """
import sys
import megatron_kaiyuan, megatron_kaiyuan.cli, megatron_kaiyuan.config, megatron_kaiyuan.data.stream
assert "torch" not in sys.modules and "megatron.core" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_importing_the_platforms_patches_nothing() -> None:
    succeeds("""
        import torch
        before = torch.Tensor.cuda, torch.Tensor.type
        from megatron_kaiyuan import platform
        from megatron_kaiyuan.platform import base, choose, cores, cpu, cuda, npu, npu_kernels, type_names
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
    succeeds(
        """
        import torch
        from megatron_kaiyuan import platform
        threads = torch.get_num_threads()
        cpu = platform.activate("cpu", local_world_size=1000)
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
        assert torch.get_num_threads() == threads and cpu.findings["threads"] == "OMP_NUM_THREADS is set"
    """,
        OMP_NUM_THREADS="2",
    )


def test_ranks_of_a_node_share_its_cores() -> None:
    """Nobody said otherwise: a thousand ranks get one thread each, whatever torch would have taken."""
    succeeds(
        """
        import torch
        from megatron_kaiyuan import platform
        torch.set_num_threads(2)
        cpu = platform.activate("cpu", local_rank=7, local_world_size=1000)
        assert torch.get_num_threads() == 1 and cpu.findings["threads"] == "the cores of this node, for 1000 ranks"
        assert not cpu.overflowed() and cpu.clear_overflow() is None
    """,
        OMP_NUM_THREADS="",
    )


def test_cuda_leaves_torch_alone() -> None:
    """With a GPU that is only claimed: megatron-core gets what it lacks for clipping, and nothing else changes."""
    succeeds("""
        import types
        import torch
        chosen = []
        torch.cuda.device_count = lambda: 2
        torch.cuda.set_device = chosen.append
        torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="0")
        from megatron_kaiyuan import platform
        before = torch.Tensor.cuda, torch.Tensor.type, torch.zeros
        assert platform.activate("cuda", local_rank=1).device == torch.device("cuda", 1)
        import megatron.core.optimizer.optimizer as optimizer
        import megatron.core.tensor_parallel.random as random
        assert chosen == [torch.device("cuda", 1)]
        assert optimizer.torch is torch and random.torch is torch
        assert random._get_cuda_rng_state.__module__ == random.__name__
        assert (torch.Tensor.cuda, torch.Tensor.type, torch.zeros) == before
        from megatron.core.optimizer import clip_grads
        gradients = [torch.randn(3, 4), torch.randn(5)]
        expected = torch.cat([part.flatten() for part in gradients])
        norm, _ = clip_grads.l2_norm_impl(0, None, [gradients], False)
        torch.testing.assert_close(norm, expected.norm().unsqueeze(0))
        clip_grads.multi_tensor_scale_impl(0, None, [gradients, gradients], 0.5)
        assert torch.equal(torch.cat([part.flatten() for part in gradients]), 0.5 * expected)
        scaled = [torch.empty_like(part) for part in gradients]
        clip_grads.multi_tensor_scale_impl(0, None, [gradients, scaled], 2)
        assert torch.equal(torch.cat([part.flatten() for part in scaled]), expected)
        # The GPU is not there, so that nothing can be added on it.
        assert "fails with torch" in platform.current().findings["weight_gradient"]
    """)


def test_cuda_says_which_libraries_it_found(tmp_path: Path) -> None:
    """PyPI's `apex` is another package."""
    files = {
        "apex/__init__.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    succeeds(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import types
        import torch
        torch.cuda.device_count = lambda: 1
        torch.cuda.set_device = lambda device: None
        torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="0")
        from megatron_kaiyuan import platform
        findings = platform.activate("cuda").findings
        assert findings["optimizer"] == findings["clipping"] == "Transformer Engine not installed; Apex not installed"
    """)


def test_a_library_that_megatron_cannot_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine/__init__.py").write_text("")
    (tmp_path / "transformer_engine/pytorch.py").write_text("raise ImportError('libcudnn.so.9: cannot open it')")
    succeeds(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import types
        import torch
        torch.cuda.device_count = lambda: 1
        torch.cuda.set_device = lambda device: None
        torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="0")
        from megatron_kaiyuan import errors, platform
        try:
            platform.activate("cuda")
        except errors.UserError as error:
            assert "libcudnn.so.9" in str(error) and "pip uninstall transformer-engine" in str(error), error
        else:
            raise SystemExit("nothing was said")
    """)


def test_missing_devices_and_packages_are_one_line() -> None:
    for name, expected in (("cuda", "no GPU"), ("npu", "torch-npu=="), ("tpu", "unknown")):
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


@pytest.mark.parametrize(
    ("platform", "environ", "advice"),
    [
        ("auto", {}, "the Slurm job asked for none; submit it with --gpus-per-node"),
        ("cuda", {"SLURM_JOB_GPUS": "0,1"}, "the job has them and srun's step does not; give srun --gpus-per-node"),
        ("auto", {"SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides them; unset it"),
        ("auto", {"SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}, "built without CUDA; install one with CUDA"),
    ],
)
def test_node_whose_gpus_this_process_does_not_see(platform: str, environ: dict[str, str], advice: str) -> None:
    """Neither the processor nor a missing word: the line says what the node has and what hides it."""
    done = run(
        f"""
        import torch
        torch.cuda.is_available, torch.cuda.device_count, torch.version.cuda = lambda: False, lambda: 0, None
        from pathlib import Path
        from megatron_kaiyuan import platform
        from megatron_kaiyuan.platform import present
        from megatron_kaiyuan.platform.base import NoDevice
        present._entries = lambda folder, form: 4 if str(folder) == "/proc/driver/nvidia/gpus" else 0
        try:
            platform.activate({platform!r})
        except NoDevice as error:
            print(error.whole_node, error)
    """,
        SLURM_STEP_ID="0",
        **environ,
    )
    assert done.stdout.startswith(
        "True platform: this node has 4 GPUs (/proc/driver/nvidia/gpus) and this process sees"
    )
    assert advice in done.stdout and "platform=cpu" in done.stdout and len(done.stdout.splitlines()) == 1, done.stderr


def test_rank_that_sees_its_own_gpu_only() -> None:
    """--gpus-per-task=1: each of two tasks sees one device, as number 0."""
    code = """
        import types
        import torch
        torch.cuda.device_count = lambda: 1
        torch.cuda.set_device = lambda device: None
        torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="0")
        from megatron_kaiyuan import platform
        from megatron_kaiyuan.platform.base import NoDevice
        try:
            print(platform.activate("cuda", local_rank=1, local_world_size=2).device)
        except NoDevice as error:
            print(error.whole_node, error)
    """
    own = {"SLURM_STEP_GPUS": "1", "SLURM_JOB_GPUS": "0,1", "SLURM_GPUS_ON_NODE": "2"}
    assert run(code, **own).stdout == "cuda:0\n"
    shared = {"SLURM_STEP_GPUS": "0", "SLURM_JOB_GPUS": "0", "SLURM_GPUS_ON_NODE": "1"}
    for environ in (shared, {**own, "TORCHELASTIC_RUN_ID": "1"}):
        printed = run(code, **environ).stdout
        assert printed.startswith("False platform: local rank 1 of 2 has no GPU, this node shows 1; start fewer")


def test_a_process_has_one_platform() -> None:
    done = run("""
        from megatron_kaiyuan import platform
        platform.activate("cpu")
        platform.activate("cuda")
    """)
    assert "already runs on 'cpu'" in done.stderr
