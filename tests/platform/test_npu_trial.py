"""Kernels are tried in a child, of which anything may happen: its parent gets a phrase for each kernel, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from megatron_kaiyuan.platform.npu_trial import Trial, findings

# A package `torch_npu` that ends or stops its own process where the real one would reach the device.
UNUSABLE = """
import os, signal
os.kill(os.getpid(), signal.{signal})
"""


def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> Trial:
    """One in a child that finds this package as torch_npu."""
    (tmp_path / "torch_npu.py").write_text(textwrap.dedent(package))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return Trial(0, ("fp32", "fp16"), ("norm", "swiglu"))


def test_a_child_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = trial(tmp_path, monkeypatch, UNUSABLE.format(signal="SIGSEGV")).problems()
    assert problems == dict.fromkeys(("norm", "swiglu"), "ended its process by signal SIGSEGV")
    assert findings(problems)["norm"] == "npu_rms_norm ended its process by signal SIGSEGV"


def test_a_child_that_hangs_is_ended_with_its_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been found before is kept."""
    package = f"""
        import subprocess, sys
        print('a line of a library', '\\n{{"norm": null}}', flush=True)
        compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(compiler.pid))
        compiler.wait()
    """
    started = trial(tmp_path, monkeypatch, package)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started.problems(timeout=0.5) == {"norm": None, "swiglu": "gave no result within 0.5 seconds"}
    compiler = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(compiler) or psutil.Process(compiler).status() == psutil.STATUS_ZOMBIE


def test_a_child_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = trial(tmp_path, monkeypatch, "raise ImportError('libhccl.so: no such file')").problems()
    expected = "could not be tried (exit code 1: ImportError: libhccl.so: no such file)"
    assert problems == dict.fromkeys(("norm", "swiglu"), expected)


def test_a_child_ends_with_its_rank(tmp_path: Path) -> None:
    """A rank that is killed leaves nothing on the device."""
    (tmp_path / "torch_npu.py").write_text("import time\ntime.sleep(600)\n")
    code = """
        import time
        from megatron_kaiyuan.platform.npu_trial import Trial
        print(Trial(0, ("fp32",), ("norm",))._child.pid, flush=True)
        time.sleep(600)
    """
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    rank = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert rank.stdout is not None
    child = psutil.Process(int(rank.stdout.readline()))
    # Once it is the trial, it has asked for the signal.
    deadline = time.monotonic() + 60
    while "megatron_kaiyuan.cluster.parent" in child.cmdline() and time.monotonic() < deadline:
        time.sleep(0.05)
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
