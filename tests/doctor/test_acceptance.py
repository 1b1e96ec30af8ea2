"""`kaiyuan doctor --acceptance`: every check runs whatever became of the others, and the record holds it."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_kaiyuan.doctor.acceptance.check import Context, worst
from megatron_kaiyuan.doctor.acceptance.one import run_one
from megatron_kaiyuan.doctor.acceptance.processes import run_check
from megatron_kaiyuan.doctor.acceptance.run import run_acceptance
from megatron_kaiyuan.doctor.acceptance.table import CHECKS
from megatron_kaiyuan.errors import UserError
from tests.helpers.processes.checks_of_one_process import ALONE
from tests.helpers.processes.faulty_checks import checks

ROOT = Path(__file__).parents[2]
TOKEN = "d41d8cd98f00b204e980"
# What a CPU does not have, of the checks of one process.
NOT_ON_CPU = {"modes", "masks", "stream", "npu_rms_norm", "npu_swiglu"}


@pytest.fixture(autouse=True)
def children_of_a_project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MY_API_TOKEN", TOKEN)
    monkeypatch.setenv("HCCL_SOCKET_IFNAME", "eth0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "acceptance.json").read_text())


def states(folder: Path) -> dict[str, str]:
    return {check["name"]: check["state"] for check in record(folder)["checks"]}


def test_the_table_has_twenty_checks_that_exist() -> None:
    assert len(CHECKS) == 20 and len({check.name for check in CHECKS}) == 20
    for check in CHECKS:
        module, _, function = check.where.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), check.where


def test_each_ends_its_own_way_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "acceptance"
    all_of_them = checks("fails", "raises", "crashes", "impossible", "passes")
    assert run_acceptance("cpu", folder, checks=all_of_them) == 1
    printed = capsys.readouterr().out
    assert states(folder) == {
        "devices": "ok",
        "fails": "failed",
        "raises": "failed",
        "crashes": "failed",
        "impossible": "not possible",
        "passes": "ok",
    }
    found = {check["name"]: check for check in record(folder)["checks"]}
    assert [check["number"] for check in record(folder)["checks"]] == [1, 2, 3, 4, 5, 6]
    assert found["raises"]["figure"] == "RuntimeError: call aclnnExp failed"
    assert "with a stack" in found["raises"]["output"]
    assert found["crashes"]["figure"] == "its process was ended by SIGSEGV; its last line: about to crash"
    # By what the first check found; and no credential anywhere.
    assert found["passes"]["figure"] == "3 ranks, ***" and "a token: ***" in found["passes"]["output"]
    assert not any(TOKEN in text for text in (printed, *(path.read_text() for path in folder.iterdir())))
    assert "acceptance: 2 ok, 3 failed, 1 not possible; to send back: " in printed
    lines = (folder / "acceptance.txt").read_text().splitlines()
    assert len(lines) == 6 and lines[1].split()[:3] == ["2", "it", "fails"]
    assert record(folder)["environment"]["HCCL_SOCKET_IFNAME"] == "eth0" and record(folder)["versions"]["torch"]
    assert sorted(path.name for path in folder.iterdir()) == ["acceptance.json", "acceptance.txt"]


def test_the_same_command_runs_again_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "acceptance"
    assert run_acceptance("cpu", folder, checks=checks("passes", "fails")) == 1
    assert run_acceptance("cpu", folder, checks=checks("passes", "fails")) == 1
    assert (tmp_path / "passes").read_text() == "ran\n"
    # Named, it runs whether it is there or not, and the others stay in the record.
    assert run_acceptance("cpu", folder, only=["passes"], checks=checks("passes", "fails")) == 1
    assert (tmp_path / "passes").read_text() == "ran\nran\n"
    assert list(states(folder)) == ["devices", "passes", "fails"]
    assert "1 of them are in the record already" in capsys.readouterr().out.replace("2 of them", "1 of them")


def test_nothing_else_is_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "acceptance"
    run_acceptance("cpu", folder, checks=checks())
    before = (folder / "acceptance.json").read_bytes()
    with pytest.raises(UserError, match="the record of another --platform"):
        run_acceptance("cuda", folder, checks=checks())
    (folder / "acceptance.json").write_bytes(before.replace(b"3 x something", b"8 x something"))
    with pytest.raises(UserError, match="is not a record of an acceptance"):
        run_acceptance("cpu", folder, checks=checks())
    with pytest.raises(UserError, match="there is no such check; known: devices, passes"):
        run_acceptance("cpu", tmp_path / "other", only=["pass"], checks=checks("passes"))
    with pytest.raises(UserError, match=r"recipe\.yaml: not found"):
        run_acceptance("cpu", tmp_path / "other", recipe=tmp_path / "recipe.yaml", checks=checks())
    assert not (tmp_path / "other").exists()


def test_a_hang_ends_with_all_that_it_started(tmp_path: Path) -> None:
    (check,) = checks("hangs", seconds=8)[1:]
    result = run_check(check, Context("cpu", 1, tmp_path / "acceptance" / "work"))
    assert result.state == "failed"
    assert result.figure == "did not end within 8 seconds and was killed; its last line: hanging"
    assert not is_running(int((tmp_path / "hanging").read_text()))


def test_a_stopped_acceptance_leaves_its_record_and_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "acceptance"
    program = (
        "import sys; from pathlib import Path; from megatron_kaiyuan.doctor.acceptance.run import run_acceptance; "
        "from tests.doctor.test_acceptance import checks; "
        f"run_acceptance('cpu', Path({str(folder)!r}), checks=checks('passes', 'hangs'))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "hanging").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not is_running(int((tmp_path / "hanging").read_text()))
    assert states(folder) == {"devices": "ok", "passes": "ok"} and not (folder / "work").exists()


def test_the_worst_error_is_nan_where_one_is() -> None:
    assert all(math.isnan(worst(errors)) for errors in ([1e-4, math.nan], [math.nan, 1e-4], [0.0, math.nan, 1.0]))
    assert worst([0.0, 2.0, 1.0]) == 2.0


def is_running(process: int, seconds: float = 20) -> bool:
    """Whether it still runs then: what was killed may take its time on a busy machine."""
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


def test_checks_of_one_process_on_a_cpu(tmp_path: Path) -> None:
    context = Context("cpu", 2, tmp_path, small=True)
    ended = {check.name: run_one(check.where, context) for check in ALONE}
    assert len(ended) == 13
    found = {name: state for name, (state, _, _) in ended.items()}
    assert {name for name, state in found.items() if state == "not possible"} == NOT_ON_CPU
    assert {name for name, state in found.items() if state == "failed"} == set(), ended
    assert ended["devices"][2] == {"platform": "cpu", "devices": 0}
    assert ended["fp32_product"][1] == "100,000 becomes 100,000, and 1 + 2^-12 becomes 1 + 0.000244: exact"


def test_exchanges_of_two_ranks(tmp_path: Path) -> None:
    (check,) = [check for check in CHECKS if check.name == "exchanges"]
    result = run_check(check, Context("cpu", 2, tmp_path))
    assert (result.state, result.figure) == (
        "ok",
        "28 exchanges, of float32, int64, bfloat16, float16, uint8, objects",
    )
    assert "\nbatched send and receive of bfloat16\n" in result.output
    assert run_check(check, Context("cpu", 1, tmp_path)).state == "not possible"


def test_options_of_an_acceptance_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megatron_kaiyuan.cli", "doctor", "--only", "devices"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --only: is for --acceptance; give that too, or leave it out\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_that_a_cpu_can(tmp_path: Path) -> None:
    """pytest tests/doctor -m slow: with trainings of the quickstart's recipe, killed and resumed too"""
    recipe = ROOT / "launch" / "recipes" / "quickstart" / "train.yaml"
    assert run_acceptance("cpu", tmp_path / "acceptance", recipe=recipe) == 0
    found = states(tmp_path / "acceptance")
    assert {name for name, state in found.items() if state == "not possible"} == {
        *NOT_ON_CPU,
        "without_fallback",
        "against_cpu",
    }
    assert len(found) == 20
