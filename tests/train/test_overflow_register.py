"""A device that keeps overflows in a register: one rank's is every rank's, whatever the layout."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from tests.helpers.processes.rank_server import run
from tests.helpers.training.small_run import TOKENS_PER_STEP, metrics

STEPS = 5
SETTINGS = [
    f"train.train_tokens={STEPS * TOKENS_PER_STEP}",
    "train.precision=fp16",
    "optimizer.initial_loss_scale=1024",
    "optimizer.hysteresis=1",
]


@pytest.mark.parametrize(
    ("layout", "passes"),
    [
        (["parallel.use_distributed_optimizer=false"], 2),
        (["parallel.pipeline_model_parallel_size=2"], 4),
        (
            [
                "parallel.pipeline_model_parallel_size=2",
                "parallel.virtual_pipeline_model_parallel_size=2",
                "model.num_layers=4",
            ],
            8,
        ),
        (["parallel.tensor_model_parallel_size=2"], 4),
    ],
    ids=["data", "pipeline", "interleaved", "tensor"],
)
def test_all_ranks_withhold_a_step_that_one_overflowed_in(
    layout: list[str], passes: int, recipe: Path, tmp_path: Path
) -> None:
    """Forward passes count as well; the register is cleared before the first of a step and read once after its last."""
    program = [Path(__file__).with_name("register_train.py"), json.dumps({"rank": 1, "steps": [2, 3]})]
    done = run(2, [*program, recipe, f"run_dir={tmp_path / 'run'}", *SETTINGS, *layout])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(tmp_path / "run")
    assert [rows[step]["loss_scale"] for step in range(1, STEPS + 1)] == [1024, 1024, 512, 256, 256]
    assert [step for step, row in rows.items() if row["grad_norm"] is None] == [2, 3]

    asked = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["clear"')]
    assert len(asked) == 2
    a_step = [("clear", 1), ("forward", passes), ("read", 1)]
    # The passes of steps 2 and 3 are run again, to find the tensor; the register is left alone.
    again = [("forward", passes)]
    for calls in asked:
        runs = [(name, len(list(group))) for name, group in groupby(calls)]
        assert runs == [*a_step, *a_step, *again, *a_step, *again, *a_step, *a_step]
