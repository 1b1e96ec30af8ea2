"""`kaiyuan doctor` as one process: what is found, one line each, and never a stack trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

from megatron_kaiyuan.platform import half

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it with a folder of packages before all others."""
    path = os.pathsep.join(map(str, [*([packages] if packages else []), ROOT]))
    return subprocess.run(
        [sys.executable, "-m", "megatron_kaiyuan.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": path},
        # Python looks here first.
        cwd=packages or ROOT,
    )


def findings(done: subprocess.CompletedProcess[str], level: str) -> list[str]:
    assert "Traceback" not in done.stderr, done.stderr
    return [one["message"] for one in json.loads(done.stdout)["findings"] if one["level"] == level]


def write_metadata(folder: Path, name: str, text: str, entry_points: str = "") -> None:
    """An installed package as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{text}")
    (info / "entry_points.txt").write_text(entry_points)


def test_this_machine(tmp_path: Path) -> None:
    done = doctor("--json", "--platform", "cpu", "--run-dir", str(tmp_path / "not" / "yet"))
    content = json.loads(done.stdout)
    assert (done.returncode, content["ok"]) == (0, True), done.stdout
    (facts,) = content["ranks"]
    assert facts["software"]["megatron-core"] == version("megatron-core")
    # requirements.txt is what the environment of these tests is made of, and what the package carries along.
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    carried = [
        one.partition(";")[0].strip() for one in requires("megatron-kaiyuan") or [] if 'extra == "tested"' in one
    ]
    assert sorted(carried) == sorted(pins) and len(pins) > 30
    assert not [message for message in findings(done, "note") if message.startswith("software")]
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["limits"]["open_files"] > 0 and facts["machine"]["memory_bytes"] > 1 << 30
    assert facts["disk"]["folder"] == str(tmp_path) and not (tmp_path / "not").exists()
    missing = half.emulated()
    half_precision = {"half precision": f"this CPU has no instructions for {' and '.join(missing)}"} if missing else {}
    assert facts["platform"] == {
        "name": "cpu",
        "backend": "gloo",
        "devices": [],
        "precisions": ["fp32", "bf16", "fp16"],
        "findings": {"threads": "OMP_NUM_THREADS is set", **half_precision},
    }
    trial = facts["trial"]
    assert trial["collectives"] and trial["adamw"] == "torch's fused kernel"
    assert all(0 <= error < 0.01 for error in trial["product_errors"].values())
    assert facts["launcher"]["name"] == "none" and facts["launcher"]["world_size"] == 1


def test_backend_that_does_not_load_is_a_finding(tmp_path: Path) -> None:
    """torch_npu without CANN: `import torch` fails as a whole, as the first assertion proves."""
    (tmp_path / "driverless.py").write_text("raise ImportError('libascendcl.so: cannot open shared object file')")
    write_metadata(tmp_path, "driverless", "", "[torch.backends]\ndriverless = driverless:autoload\n")
    wanted = ["numpy>=99", "absent-package", 'orjson==0.1; extra == "tested"', 'absent-tool==1; extra == "tested"']
    required = "".join(f"Requires-Dist: {one}\n" for one in wanted)
    write_metadata(tmp_path, "megatron-kaiyuan", f"Provides-Extra: tested\n{required}")
    plain = subprocess.run(
        [sys.executable, "-c", "import torch"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert plain.returncode != 0 and "driverless" in plain.stderr

    done = doctor("--json", "--platform", "cpu", packages=tmp_path)
    problems = findings(done, "problem")
    assert done.returncode == 1 and not json.loads(done.stdout)["ok"]
    (line,) = [message for message in problems if message.startswith("torch: the backend 'driverless'")]
    assert "libascendcl.so" in line and "CANN" in line and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in line
    assert any("numpy" in message and "outside >=99" in message for message in problems)
    assert any("absent-package is not installed" in message for message in problems)
    assert len(problems) == 3
    (note,) = findings(done, "note")
    assert note.startswith("software: orjson ") and note.endswith("is not the tested ==0.1")
    # The rest was examined all the same.
    assert json.loads(done.stdout)["ranks"][0]["platform"]["name"] == "cpu"


def test_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    done = doctor(packages=tmp_path)
    assert done.returncode == 1 and done.stderr == ""
    assert "problem: torch: cannot be imported (libcudart.so.12: cannot open" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("doctor: 1 problem")
    assert "machine " in done.stdout and "disk " in done.stdout


def test_contradiction_of_launchers_and_limits_are_findings(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('not needed here')")
    command = ["bash", "-c", f"ulimit -n 256; exec {sys.executable} -m megatron_kaiyuan.cli doctor --json"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "WORLD_SIZE": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    problems = findings(done, "problem")
    assert done.returncode == 1
    assert any(message.startswith("launcher: WORLD_SIZE is 2, but RANK is missing") for message in problems)
    assert any(message.startswith("open files: 256 at most, 1024 are needed") for message in problems)
