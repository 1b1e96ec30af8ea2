"""`kaiyuan doctor` and the checks of an acceptance on the real torch_npu, over stubs of CANN with host kernels."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.helpers.ascend import machine

DOCTOR = ("-m", "megatron_kaiyuan.cli", "doctor", "--platform", "npu", "--json")


def checks(soc: str, *names: str, failing: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """How each check of one process ends, or the named ones, and its figure."""
    program = ("-m", "tests.helpers.processes.checks_of_one_process", "npu", *names)
    done = machine.python(*program, soc=soc, failing=failing)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ended: ")]
    return {name: (state, figure) for name, (state, figure) in json.loads(line.removeprefix("ended: ")).items()}


def test_checks_of_a_910a() -> None:
    found = checks("Ascend910A")
    states = {name: state for name, (state, _) in found.items()}
    assert {name for name, state in states.items() if state != "ok"} == {"npu_swiglu"}, found
    assert states["npu_swiglu"] == "not possible"
    assert found["devices"][1] == "8 x Ascend910A"
    assert found["modes"][1] == "Ascend910A: is_bf16_supported False, is_support_inf_nan False"
    assert found["fp32_product"][1].startswith("100,000 becomes 65,504, and 1 + 2^-12 becomes 1 + 0: rounded to FP16")
    assert "the float status tells of it: True; set before: False; set after clearing: False" in found["overflow"][1]
    assert "float status not set" in found["attention"][1]
    assert "softmax of the lowest in float16 does not" in found["masks"][1]
    assert "finite + (-inf) in float16 sets it" in found["masks"][1]


def test_checks_of_a_910b() -> None:
    found = checks("Ascend910B2")
    assert {name for name, (state, _) in found.items() if state != "ok"} == {"masks"}, found
    assert found["fp32_product"][1].endswith("exact")
    assert "bf16 off by" in found["half_product"][1]


def test_an_operator_that_fails_fails_alone() -> None:
    names = ("fp32_product", "overflow", "masks", "adamw")
    found = checks("Ascend910A", *names, failing=("Exp",))
    assert {name: state for name, (state, _) in found.items()} == {**dict.fromkeys(names, "ok"), "overflow": "failed"}


def test_doctor_on_a_910a_without_exp() -> None:
    done = machine.python(*DOCTOR, failing=("Exp",))
    content = json.loads(done.stdout)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    problems = [one["message"] for one in content["findings"] if one["level"] == "problem"]
    assert any(message.startswith("device: exp(12) in FP16 fails (") for message in problems)
    # What follows in the same process is tried all the same, and is well.
    assert not any("AdamW" in message or "product" in message or "broadcast" in message for message in problems)
    (facts,) = content["ranks"]
    assert facts["trial"]["adamw"] == "torch's kernel for each operation" and facts["trial"]["collectives"]
    notes = [one["message"] for one in content["findings"] if one["level"] == "note"]
    assert any("products of FP32 tensors are computed from FP16 inputs here" in message for message in notes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_doctor_on_two_ranks() -> None:
    """pytest tests/doctor -m slow"""
    done = machine.python(*DOCTOR, ranks=2, timeout=1500)
    content = json.loads(done.stdout)
    assert done.returncode == 0 and content["ok"], done.stdout
    assert len(content["ranks"][0]["exchanges"]) == 21
    assert {row["operation"] for row in content["ranks"][0]["collectives"]["operations"]} >= {"all_reduce", "broadcast"}
