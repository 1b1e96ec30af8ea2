"""Platform npu over a torch_npu without hardware (`fake_ascend`): the real code, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.rank_server import run

FAKE = Path(__file__).with_name("fake_ascend")
ROOT = Path(__file__).parents[2]


def python(*arguments: str, path: tuple[Path, ...] = (FAKE,), **fake: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders of packages before all others."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
        "FAKE_NPU": json.dumps(fake),
    }
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, env=environment)


def forked(*arguments: str, path: tuple[Path, ...], **fake: Any) -> subprocess.CompletedProcess[str]:
    """The same in a fork that has imported torch, and no platform."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [*path, ROOT])))
        patch.setenv("FAKE_NPU", json.dumps(fake))
        return run(1, arguments, imported="torch")


def activated(code: str, tmp_path: Path, path: tuple[Path, ...] = (FAKE,), **fake: Any) -> list[dict[str, Any]]:
    """Run code, which must succeed; what was asked of torch_npu."""
    log = tmp_path / "calls.jsonl"
    done = forked("-c", textwrap.dedent(code), path=path, log=str(log), **fake)
    assert done.returncode == 0, done.stderr
    assert "are replaced" not in done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def package(folder: Path, name: str, code: str = "") -> Path:
    """A folder with a package that is this code."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return folder


def adaptor(folder: Path, code: str) -> Path:
    """A folder with a MindSpeed whose adaptor is this code."""
    package(folder, "mindspeed")
    (folder / "mindspeed" / "megatron_adaptor.py").write_text(textwrap.dedent(code))
    return folder


def test_a_910a(tmp_path: Path) -> None:
    """Order of the patches, precisions, the register, and what falls back."""
    calls = activated(
        """
        import torch
        before = torch.nn.Linear.forward, torch.optim.AdamW.step
        from megatron_kaiyuan import platform
        from megatron_kaiyuan.errors import UserError
        npu = platform.activate("auto", local_rank=1)
        assert (npu.name, npu.collective_backend, npu.device) == ("npu", "hccl", torch.device("npu", 1))
        npu.require_precision("fp16")
        npu.require_precision("fp32")
        try:
            npu.require_precision("bf16")
        except UserError as error:
            assert str(error) == "train.precision: bf16 does not run on platform npu; use fp32 or fp16"
        else:
            raise SystemExit("BF16 on a 910A")

        import megatron.core.optimizer.optimizer as optimizer
        from megatron.core import jit
        assert jit.jit_fuser is jit.noop_decorator and optimizer.torch is torch
        weight = torch.nn.Parameter(torch.ones(2))
        weight.grad = torch.full((2,), 3.0)
        assert weight.type() == "torch.npu.FloatTensor"
        optimizer.clip_grad_by_total_norm_fp32([weight], max_norm=1.0, total_norm=18**0.5)
        assert torch.allclose(weight.grad, torch.tensor(0.5**0.5)), weight.grad
        assert weight.type() == "torch.npu.FloatTensor"

        flags = []
        for _ in range(3):
            npu.clear_overflow()
            flags.append(npu.overflowed())
        assert flags == [False, True, False]
        assert npu.fused == {} and not npu.has_fused_adamw
        assert npu.findings["norm"] == "npu_rms_norm fails in fp32 (npu_rms_norm is not supported on this device)"
        assert npu.findings["optimizer"] == "torch_npu has no fused AdamW kernel"
        assert "float status" in npu.findings["overflow"]
        """,
        tmp_path,
        soc="910A",
        devices=2,
        overflows={"0": [2]},
        rms_norm="failing",
        fused_adamw=False,
    )
    first = [(call["call"], call.get("megatron")) for call in calls[:3]]
    assert first == [("import", False), ("transfer_to_npu", False), ("set_device", None)]
    assert calls[2]["device"] == 1
    register = [call["call"].partition("_")[0] for call in calls[3:]]
    assert register == ["clear", "get"] * 3


def recipe(folder: Path) -> Path:
    """A recipe whose data is missing."""
    path = folder / "train.yaml"
    path.write_text(
        """
        run_dir: run
        model: {preset: kaiyuan-tiny, vocab_size: 256}
        data: {phases: [{path: missing, peak_lr: 1.0e-3}]}
        train: {seq_length: 64, micro_batch_size: 1, global_batch_size: 1}
        """
    )
    return path


NO_CANN = "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')"
ADAPTOR = """
    import sys
    from torch_npu import simulated
    transferred = "torch_npu.contrib.transfer_to_npu" in sys.modules
    simulated.record("mindspeed", megatron="megatron.core" in sys.modules, transferred=transferred)
    import megatron.core.jit
"""


def test_a_910b_with_mindspeed(tmp_path: Path) -> None:
    """It has infinities and BF16; no register is asked for. The adaptor comes between transfer_to_npu and megatron."""
    mindspeed = adaptor(tmp_path / "packages", ADAPTOR)
    calls = activated(
        """
        import warnings
        import torch
        from megatron_kaiyuan import platform
        npu = platform.activate("npu", mindspeed=True)
        npu.require_precision("bf16")
        npu.clear_overflow()
        assert not npu.overflowed()
        assert npu.findings["overflow"] == "inf and NaN in gradients"
        assert "adaptor was loaded" in npu.findings["megatron-core"]
        assert npu.has_fused_adamw

        from megatron_kaiyuan.backend.choose import choose
        from megatron_kaiyuan.config import BackendConfig, ModelConfig, ParallelConfig
        from megatron_kaiyuan.model.build import transformer_config
        from megatron_kaiyuan.model.norm import RMSNorm
        backend = choose(BackendConfig(), npu)
        assert backend.choices["norm"].implementation == "npu"
        config = transformer_config(ModelConfig(preset="kaiyuan-tiny", vocab_size=256), ParallelConfig(), "bf16")
        norm, values = RMSNorm(config, 64, kernel=backend.norm), torch.randn(3, 64, dtype=torch.bfloat16)
        torch.testing.assert_close(norm(values), torch.nn.functional.rms_norm(values, (64,), norm.weight, 1e-6))
        """,
        tmp_path,
        path=(FAKE, mindspeed),
        soc="910B",
        rms_norm="right",
    )
    order = [call["call"] for call in calls if call["call"] != "npu_rms_norm"]
    assert order == ["import", "transfer_to_npu", "set_device", "mindspeed"]
    loaded = next(call for call in calls if call["call"] == "mindspeed")
    assert loaded["transferred"] and not loaded["megatron"]
    # Three probes, then the norm of the network.
    tried = [call["dtype"] for call in calls if call["call"] == "npu_rms_norm"]
    assert tried == ["torch.float32", "torch.bfloat16", "torch.float16", "torch.bfloat16"]


ACTIVATE_EACH = """
import json, os, sys
import torch
from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError

for path, fake, arguments in json.loads(sys.argv[1]):
    if os.fork() == 0:
        sys.path[:0] = path
        os.environ["FAKE_NPU"] = json.dumps(fake)
        try:
            platform.activate(*arguments)
        except UserError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
"""


def messages(*cases: tuple[tuple[Path, ...], dict[str, Any], list[Any]]) -> list[str]:
    """What activation says in each case of packages before all others, simulated node and arguments."""
    content = json.dumps([([str(folder) for folder in path], fake, arguments) for path, fake, arguments in cases])
    done = forked("-c", ACTIVATE_EACH, content, path=())
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_what_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    no_cann = package(tmp_path / "a", "torch_npu", NO_CANN)
    placeholder = package(tmp_path / "b", "mindspeed")
    older = adaptor(tmp_path / "c", "raise AttributeError('no gpt_layer')")
    needy = adaptor(tmp_path / "d", "import einops_npu")
    told = messages(
        ((), {}, ["npu"]),
        ((no_cann,), {}, ["auto"]),
        ((FAKE,), {"devices": 0}, ["npu"]),
        ((FAKE,), {"devices": 2}, ["npu", 2, 3]),
        ((FAKE,), {}, ["npu", 0, 1, True]),
        ((FAKE, placeholder), {}, ["npu", 0, 1, True]),
        ((FAKE, older), {}, ["npu", 0, 1, True]),
        ((FAKE, needy), {}, ["npu", 0, 1, True]),
        ((), {}, ["cpu", 0, 1, True]),
    )
    assert len(told) == 9, told
    missing, cann, no_device, rank, no_mindspeed, empty, version, dependency, cpu = told
    assert "pip install torch-npu==2." in missing and "+" not in missing
    assert "libhccl.so" in cann and "set_env.sh" in cann and "platform=cpu" in cann
    assert "finds no device" in no_device and "ASCEND_RT_VISIBLE_DEVICES" in no_device
    assert "local rank 2 has no NPU, this node shows 2" in rank
    assert no_mindspeed == empty and "PyPI's mindspeed is an empty package" in empty
    assert "does not load with megatron-core" in version and "no gpt_layer" in version
    assert "einops_npu" in dependency
    assert "mindspeed: it is for platform npu, and this is cpu" in cpu


def test_a_rank_without_a_device_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has one and cannot know."""
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    command = ("-m", "megatron_kaiyuan.cli", "train", str(recipe(tmp_path)), "platform=npu")
    done = python(*command, devices=1)
    assert done.returncode == 2
    assert "local rank 1 has no NPU, this node shows 1" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture
def without_cann(tmp_path: Path) -> Path:
    """torch_npu as installed on a machine without CANN: torch itself loads it, through its entry point."""
    folder = package(tmp_path / "site", "torch_npu", NO_CANN)
    metadata = folder / "torch_npu-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return folder


def test_cann_missing_stops_only_platform_npu(without_cann: Path, tmp_path: Path) -> None:
    """`import torch` alone would fail, with two stack traces."""
    alone = python("-c", "import torch", path=(without_cann,))
    assert "Failed to load the backend extension: torch_npu" in alone.stderr
    # On CPU the command comes as far as a mistake in the recipe that only a platform can find.
    for name, expected in (
        ("npu", "torch_npu 2.13.0 cannot be imported"),
        ("cpu", "mindspeed: it is for platform npu"),
    ):
        command = ("-m", "megatron_kaiyuan.cli", "train", str(recipe(tmp_path)), f"platform={name}", "mindspeed=true")
        done = python(*command, path=(without_cann,))
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1 and expected in done.stderr, done.stderr
