"""`kaiyuan doctor` and the checks of an acceptance on the real torch_npu, over stubs of CANN with host kernels."""

from __future__ import annotations

import json

from tests.platform.ascend import machine

DOCTOR = ("-m", "megatron_kaiyuan.cli", "doctor", "--platform", "npu", "--json")


def checks(soc: str, **node: object) -> dict[str, tuple[str, str]]:
    """How each check of one process ends, and its figure."""
    done = machine.python("-m", "tests.doctor.checks_of_one_process", "npu", soc=soc, **node)  # type: ignore[arg-type]
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
    found = checks("Ascend910A", failing=("Exp",))
    assert {name for name, (state, _) in found.items() if state == "failed"} == {"overflow"}, found


def test_doctor_finds_what_a_910a_lacks() -> None:
    whole = machine.python(*DOCTOR)
    content = json.loads(whole.stdout)
    assert whole.returncode == 0 and content["ok"], whole.stdout + whole.stderr
    assert [one["message"].split(":")[1] for one in content["findings"]] == [
        " products of FP32 tensors are computed from FP16 inputs here, so that precision fp32 and model.fp32_head gain "
        "range in sums only"
    ]
    broken = machine.python(*DOCTOR, failing=("Exp",))
    messages = [one["message"] for one in json.loads(broken.stdout)["findings"] if one["level"] == "problem"]
    assert broken.returncode == 1 and "Traceback" not in broken.stderr
    # What follows in the same process is tried all the same.
    assert any(message.startswith("device: exp(12) in FP16 fails (") for message in messages)
    assert not any("AdamW" in message or "a product" in message for message in messages)
