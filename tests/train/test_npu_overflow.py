"""Forward passes that overflow on a 910A, over the real torch_npu: finite numbers, and a step that is withheld."""

from __future__ import annotations

import json
from pathlib import Path

from small_run import TOKENS_PER_STEP, events, metrics

from tests.platform.ascend import machine

STEPS = 5


def test_a_saturated_forward_pass_withholds_the_step(recipe: Path, tmp_path: Path) -> None:
    """Nothing else sets the register, with masks, norms and a loss as they are."""
    program = [Path(__file__).with_name("overflowing_train.py"), json.dumps({"rank": 0, "steps": [2, 3]})]
    settings = ["train.precision=fp16", "optimizer.initial_loss_scale=1024", "optimizer.hysteresis=1"]
    length = f"train.train_tokens={STEPS * TOKENS_PER_STEP}"
    run_dir = tmp_path / "run"
    done = machine.python(*program, recipe, f"run_dir={run_dir}", "platform=npu", length, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(run_dir)
    assert [rows[step]["loss_scale"] for step in range(1, STEPS + 1)] == [1024, 1024, 512, 256, 256]
    assert [step for step, row in rows.items() if row["grad_norm"] is None] == [2, 3]
    assert len(done.register) == 2 and set(done.register) == {"aten::add"}, done.register
    assert all("register" in event["message"] for event in events(run_dir, "overflow"))
    # HCCL gives a collective up after the watchdog has named a rank, and before torch does.
    assert "watchdog timeout" not in done.stderr
