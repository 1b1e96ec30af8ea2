"""Plans that nobody means: refused where no continuation mends them, else one warning each, and none for sound ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from megatron_kaiyuan.config import RunConfig, WeightKind, load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.optim.schedule import Schedule
from megatron_kaiyuan.train.sensible import odd_plan, require_reached_peak

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
PHASE_TOKENS = [100_000, 50_000]


def plan(tmp_path: Path, *overrides: str) -> tuple[RunConfig, Schedule]:
    recipe: dict[str, Any] = {
        "run_dir": "run",
        "model": {"preset": "kaiyuan-tiny"},
        "data": {
            "phases": [
                {"path": "one", "peak_lr": 6e-3},
                {"path": "two", "peak_lr": 6e-3, "final_lr": 6e-4, "decay_fraction": 0.6},
            ]
        },
        "train": {"seq_length": 128, "micro_batch_size": 2, "global_batch_size": 8},
        "optimizer": {"warmup_tokens": 10_000},
        "checkpoint": {"save_every_steps": 50},
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run = load_run(path, overrides)
    tokens = PHASE_TOKENS[: len(run.data.phases)]
    return run, Schedule(run.data.phases, tokens, run.optimizer.warmup_tokens, run.optimizer.schedule_tokens)


def warned(tmp_path: Path, *overrides: str, end: int = 150_000) -> list[str]:
    run, schedule = plan(tmp_path, *overrides)
    require_reached_peak(run, schedule)
    steps = end // run.train.tokens_per_step
    return list(odd_plan(run, schedule, steps, steps * run.train.tokens_per_step))


ONE_PHASE = "data.phases=[{path: one, peak_lr: 6e-3, final_lr: 6e-4, decay_fraction: 0.9}]"


@pytest.mark.parametrize("warmup", [60_000, 100_000])
def test_a_warm_up_that_ends_deep_in_the_only_decay_is_refused(tmp_path: Path, warmup: int) -> None:
    run, schedule = plan(tmp_path, ONE_PHASE, f"optimizer.warmup_tokens={warmup}")
    highest = max(schedule.learning_rate(token) for token in range(1, 100_001, 7)) / 6e-3
    with pytest.raises(UserError, match=f"comes to {highest:.0%} of peak_lr at most"):
        require_reached_peak(run, schedule)


def test_a_decay_from_the_first_token_is_the_usual_cosine(tmp_path: Path) -> None:
    usual = "data.phases=[{path: one, peak_lr: 6e-3, final_lr: 6e-4, decay_fraction: 1, decay_shape: cosine}]"
    assert warned(tmp_path, usual, "optimizer.warmup_tokens=2_000", end=100_000) == []


@pytest.mark.parametrize(
    ("overrides", "end", "expected"),
    [
        (
            ["optimizer.warmup_tokens=60k", "checkpoint.save_every_steps=10"],
            30_000,
            "stops at 29,696 tokens, within the warm-up of 60,000",
        ),
        (["optimizer.warmup_tokens=130k"], 150_000, "data.phases.0: the warm-up leaves it 77% of its peak_lr"),
        (["optimizer.schedule_tokens=120k"], 150_000, "the schedule ends after 120,000 tokens"),
        (["checkpoint.save_every_steps=1000"], 150_000, "save_every_steps 1,000 is beyond the 146 steps of the run"),
        (["checkpoint.keep_every_steps=70"], 150_000, "only multiples of 350 stay"),
        (["optimizer.decoupled_lr=6"], 150_000, "optimizer.decoupled_lr 6 is far above what AdamW takes"),
        (
            [f"optimizer.lr_mult.{kind}=0" for kind in get_args(WeightKind) if kind != "embedding_norm"],
            150_000,
            "optimizer.lr_mult is 0 for every kind of weight: nothing is trained",
        ),
        (["data.phases.0.peak_lr=6"], 150_000, "data.phases.0.peak_lr 6 is far above what AdamW takes"),
        (["data.phases.0.decay_fraction=0.5"], 150_000, "decay_fraction 0.5 has no effect without final_lr"),
        (["data.phases.1.decay_fraction=0"], 150_000, "final_lr 0.0006 is never reached with decay_fraction 0"),
        (["data.phases.1.path=one"], 150_000, "data.phases.1.path one is an earlier phase too"),
        (["train.train_tokens=0"], 0, "only step 0, the untrained network, is written"),
    ],
)
def test_one_warning_for_what_is_odd(tmp_path: Path, overrides: list[str], end: int, expected: str) -> None:
    (line,) = warned(tmp_path, *overrides, end=end)
    assert expected in line and "\n" not in line


def test_no_word_about_sound_plans(tmp_path: Path) -> None:
    assert warned(tmp_path) == []
    # Stopped early, to be continued; by the clock; a longer schedule than today's stop.
    assert warned(tmp_path, "train.train_tokens=60k", end=60_000) == []
    assert warned(tmp_path, "checkpoint.save_every_steps=1000", "checkpoint.save_every_minutes=5") == []
    assert warned(tmp_path, "optimizer.schedule_tokens=1M") == []


@pytest.mark.parametrize("name", ["quickstart/train.yaml", "kaiyuan-2b/train.yaml"])
def test_no_word_about_this_projects_recipes(name: str) -> None:
    run = load_run(RECIPES / name, ["run_dir=x"])
    tokens = [100 * max(run.optimizer.warmup_tokens, 10**6)] * len(run.data.phases)
    schedule = Schedule(run.data.phases, tokens, run.optimizer.warmup_tokens)
    require_reached_peak(run, schedule)
    assert list(odd_plan(run, schedule, sum(tokens) // run.train.tokens_per_step, sum(tokens))) == []
