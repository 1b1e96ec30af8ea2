"""Events in words, and what a run cost, start by start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.report.environment import cost_rows, environment_rows, implementation_rows, total_cost
from megatron_kaiyuan.report.happened import happenings, samples_of
from megatron_kaiyuan.report.metrics import History, read_history
from tests.helpers.training.sample_run import TOKENS_PER_STEP, step_row

DOCUMENTS = [{"corpus": "code", "sequences": "1"}, {"corpus": "web", "sequences": "2"}]
SAID: list[tuple[dict[str, Any], str, str]] = [
    ({"event": "resume", "step": 50}, "restart", "continues from checkpoint step_50"),
    (
        {"event": "config_change", "step": 50, "changes": {"optimizer.clip_grad": {"was": 1.0, "now": 0.5}}},
        "",
        "optimizer.clip_grad was 1.0, is 0.5 (the steps that follow are computed with it)",
    ),
    (
        {
            **{"event": "bad_step", "step": 7, "reason": "loss is nan", "action": "skip", "loss": None},
            **{"gradient_norm": 2.5, "tokens": [1000, 2001], "documents": DOCUMENTS},
        },
        "fault",
        "loss is nan; the step is skipped, weights stay; gradient norm 2.5; tokens 1,000 to 2,001; "
        "2 documents of code, web",
    ),
    (
        {"event": "rollback", "step": 4, "tokens": 400, "left_out": [1000, 2000]},
        "fault",
        "back to step 4; tokens 1,000 to 2,000 are left out from here on",
    ),
    (
        {"event": "left_out", "step": 4, "tokens": [[1000, 2000]]},
        "",
        "will leave out tokens 1,000 to 2,000, found bad by an earlier start",
    ),
    ({"event": "stop", "step": 9, "finished": False}, "", "stopped on request; the same command continues"),
    (
        {"event": "headroom_warning", "step": 9, "message": "layer 3 is near the end"},
        "fault",
        "layer 3 is near the end",
    ),
    ({"event": "of_tomorrow", "step": 9, "colour": "red"}, "", "colour red"),
]


@pytest.mark.parametrize(("event", "kind", "words"), SAID, ids=[event["event"] for event, _, _ in SAID])
def test_an_event_in_words(event: dict, kind: str, words: str) -> None:
    (found,) = happenings(History(events=[event]))
    assert (found.kind, found.words) == (kind, words)


@pytest.mark.parametrize("event", [event for event, _, _ in SAID], ids=[event["event"] for event, _, _ in SAID])
@pytest.mark.parametrize("damage", [None, "text", 3, [1], {"a": []}])
def test_a_damaged_event_is_shown_all_the_same(event: dict, damage: object) -> None:
    for name in event:
        if name != "event":
            assert len(happenings(History(events=[{**event, name: damage}]))) == 1


def written(folder: Path, lines: list[dict]) -> History:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_history(folder / "metrics.jsonl")


def rows(first: int, last: int, time: float) -> list[dict]:
    return [{**step_row(step), "time": time + step} for step in range(first, last + 1)]


def test_cost_counts_what_was_trained_twice(tmp_path: Path) -> None:
    """Two devices for 100 s, stopped at step 50 after a checkpoint of 40; then four devices for 60 s, to step 100."""
    at = TOKENS_PER_STEP
    history = written(
        tmp_path,
        [
            {"event": "start", "step": 0, "tokens": 0, "world_size": 2, "time": 1000.0},
            {"event": "utilization", "flops_per_token": 10.0, "device": "H200", "time": 1000.0},
            *rows(1, 50, 1050.0),
            {"event": "resume", "step": 40, "tokens": 40 * at, "world_size": 4, "time": 5000.0},
            *rows(41, 100, 4960.0),
        ],
    )
    first, second = cost_rows(history, None)
    assert (first["devices"], first["device_hours"], first["tokens"]) == (2, pytest.approx(2 * 100 / 3600), 50 * at)
    assert (second["devices"], second["device_hours"], second["tokens"]) == (4, pytest.approx(4 * 60 / 3600), 60 * at)
    total = total_cost(history, None)
    assert (total["tokens"], total["flops"], total["wall"]) == (110 * at, 1100 * at, "0:02:40")
    assert total["again"] == pytest.approx(10 / 110)
    facts = dict(environment_rows(history))
    assert facts["ranks"] == "2 → 4" and facts["device"] == "H200"


def test_a_run_without_a_start_has_no_cost_in_devices(tmp_path: Path) -> None:
    history = written(tmp_path, rows(1, 5, 0.0))
    assert total_cost(history, None)["device_hours"] is None and environment_rows(history) == []
    assert implementation_rows(history) == [] and samples_of(history) == []


def test_samples_are_newest_first() -> None:
    events = [
        {"event": "samples", "step": step, "tokens": 10 * step, "samples": [{"prompt": "a", "text": str(step)}, 3]}
        for step in (1, 2000)
    ]
    assert samples_of(History(events=[*events, {"event": "samples", "samples": "damaged"}])) == [
        {"step": "2,000", "tokens": "20,000", "texts": [("a", "2000")]},
        {"step": "1", "tokens": "10", "texts": [("a", "1")]},
    ]
