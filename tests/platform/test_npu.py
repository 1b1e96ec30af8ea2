"""Platform npu where something is missing or stands in the way, and with MindSpeed; over the real torch_npu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ascend import machine
from tests.helpers.processes.rank_server import run

ROOT = Path(__file__).parents[2]
NO_CANN = "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')"


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


def test_the_adaptor_of_mindspeed_comes_between_transfer_to_npu_and_megatron(tmp_path: Path) -> None:
    order = """
        import sys
        assert "torch_npu.contrib.transfer_to_npu" in sys.modules and "megatron.core" not in sys.modules
        import megatron.core.jit
        print("adaptor")
    """
    activate = """
        from megatron_kaiyuan import platform
        npu = platform.activate("npu", mindspeed=True)
        assert npu.findings["megatron-core"] == "mindspeed is set, and its adaptor was loaded"
        from megatron.core import jit
        assert jit.jit_fuser is jit.noop_decorator
    """
    path = [adaptor(tmp_path, order)]
    done = machine.python("-c", textwrap.dedent(activate), path=path, trial_in_child=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1:] == ["adaptor"]
    assert "are replaced" not in done.stderr


ACTIVATE_EACH = """
import json, os, sys
from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError

for path, environment, arguments in json.loads(sys.argv[1]):
    if os.fork() == 0:
        sys.path[:0] = path
        os.environ.update(environment)
        try:
            platform.activate(*arguments)
        except UserError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
"""
Case = tuple[tuple[Path, ...], dict[str, str], list[Any]]


def program(*cases: Case) -> list[str]:
    """Activates in each case of packages before all others, environment and arguments; prints what it says."""
    content = [([str(folder) for folder in path], environment, arguments) for path, environment, arguments in cases]
    return ["-c", ACTIVATE_EACH, json.dumps(content)]


def test_what_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    no_cann = package(tmp_path / "a", "torch_npu", NO_CANN)
    done = run(
        1, program(((), {}, ["npu"]), ((no_cann,), {}, ["auto"]), ((), {}, ["cpu", 0, 1, True])), imported="torch"
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    missing, cann, cpu = done.stdout.splitlines()
    assert "pip install torch-npu==2." in missing and "+" not in missing
    assert "libhccl.so" in cann and "set_env.sh" in cann and "platform=cpu" in cann
    assert "mindspeed: it is for platform npu, and this is cpu" in cpu


def test_what_is_missing_on_a_node_is_told_in_one_line(tmp_path: Path) -> None:
    mindspeed: list[Any] = ["npu", 0, 1, True]
    placeholder = package(tmp_path / "b", "mindspeed")
    older = adaptor(tmp_path / "c", "raise AttributeError('no gpt_layer')")
    needy = adaptor(tmp_path / "d", "import einops_npu")
    cases: list[Case] = [
        ((), {}, ["npu", 8, 9]),
        ((), {}, mindspeed),
        ((placeholder,), {}, mindspeed),
        ((older,), {}, mindspeed),
        ((needy,), {}, mindspeed),
    ]
    done = machine.python(*program(*cases), trial_in_child=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rank, no_mindspeed, empty, version, dependency = done.stdout.splitlines()
    assert "local rank 8 of 9 has no NPU, this node shows 8" in rank
    assert no_mindspeed == empty and "PyPI's mindspeed is an empty package" in empty
    assert "does not load with megatron-core" in version and "no gpt_layer" in version
    assert "einops_npu" in dependency


def test_a_node_without_devices(tmp_path: Path) -> None:
    command = ("-m", "megatron_kaiyuan.cli", "train", recipe(tmp_path), "platform=npu")
    done = machine.python(*command, devices=0)
    assert done.returncode == 2
    assert "finds no device" in done.stderr and "ASCEND_RT_VISIBLE_DEVICES" in done.stderr
    assert done.stderr.count("\n") == 2 and "\nerror: " in done.stderr, done.stderr


@pytest.fixture
def without_cann(tmp_path: Path) -> Path:
    """torch_npu as installed on a machine without CANN: torch itself loads it, through its entry point."""
    folder = package(tmp_path / "site", "torch_npu", NO_CANN)
    metadata = folder / "torch_npu-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return folder


def python(*arguments: object, path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with this folder of packages before all others."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (path, ROOT)))}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_cann_missing_stops_only_platform_npu(without_cann: Path, tmp_path: Path) -> None:
    """`import torch` alone would fail, with two stack traces."""
    alone = python("-c", "import torch", path=without_cann)
    assert "Failed to load the backend extension: torch_npu" in alone.stderr
    # On CPU the command comes as far as a mistake in the recipe that only a platform can find.
    for name, expected in (
        ("npu", "torch_npu 2.13.0 cannot be imported"),
        ("cpu", "mindspeed: it is for platform npu"),
    ):
        command = ("-m", "megatron_kaiyuan.cli", "train", recipe(tmp_path), f"platform={name}", "mindspeed=true")
        done = python(*command, path=without_cann)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 2 and expected in done.stderr, done.stderr
