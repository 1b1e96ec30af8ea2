from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.report.metrics import RESTARTS, read_history
from megatron_kaiyuan.report.plots import _running_mean
from tests.helpers.training.sample_run import step_row, write_metrics


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_after_a_restart_count(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in history.rows] == list(range(1, 101))
    assert history.column("loss").max() < 20, "losses of 99 belong to steps that were trained again"
    assert (history.repeated, history.unreadable, len(history.restarts)) == (6, 2, 1)
    assert np.isnan(history.column("grad_norm")[29]) and np.isfinite(history.column("grad_norm")[30])
    assert history.monitored.tokens.tolist() == [step * 4096 for step in range(10, 101, 10)]
    assert "monitor" not in {event["event"] for event in history.events}
    assert history.tokens_at(50) == 50 * 4096
    without = read_history(tmp_path / "metrics.jsonl", with_monitor=False)
    assert len(without.monitored) == 0 and list(without.rows) == list(history.rows)
    assert (without.events, without.unreadable) == (history.events, history.unreadable)


def test_a_restart_voids_later_steps_even_when_it_logs_others(tmp_path: Path) -> None:
    rows = [step_row(10), step_row(20), step_row(30), {"event": "resume", "step": 15, "time": 0.0}, step_row(25)]
    history = read_history(write(tmp_path / "metrics.jsonl", rows))
    assert [row["step"] for row in history.rows] == [10, 25]
    assert history.repeated == 2
    assert history.tokens_at(15) == pytest.approx(15 * 4096)


def test_the_later_of_two_rows_counts_without_any_event(tmp_path: Path) -> None:
    rows = [step_row(1, loss=5.0), step_row(2, loss=4.0), step_row(2, loss=3.0)]
    history = read_history(write(tmp_path / "metrics.jsonl", rows))
    assert history.column("loss").tolist() == [5.0, 3.0]


def test_the_loss_at_the_end_is_a_mean_over_steps(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).normal(5, 1, size=64)
    rows = []
    for start, stop in [(0, 20), (20, 40), (40, 60), (60, 64)]:
        part = losses[start:stop]
        mean = {"loss_mean": float(part.mean()), "loss_steps": len(part)}
        rows.append({**step_row(stop, loss=float(part[-1])), **mean})
    # The last interval has four steps, so that a whole one before it counts too.
    loss, steps = read_history(write(tmp_path / "metrics.jsonl", rows)).last_loss()
    assert (steps, loss) == (24, pytest.approx(losses[40:].mean()))
    loss, steps = read_history(write(tmp_path / "metrics.jsonl", rows[:3])).last_loss()
    assert (steps, loss) == (20, pytest.approx(losses[40:60].mean()))


def test_the_loss_at_the_end_of_older_records_and_of_none(tmp_path: Path) -> None:
    rows = [step_row(step, loss=float(step)) for step in range(1, 31)]
    assert read_history(write(tmp_path / "metrics.jsonl", rows)).last_loss() == (pytest.approx(25.5), 10)
    assert read_history(write(tmp_path / "metrics.jsonl", rows[:3])).last_loss() == (pytest.approx(2.0), 3)
    nothing = [{**step_row(1), "loss": None, "loss_mean": None, "loss_steps": 0}]
    loss, steps = read_history(write(tmp_path / "metrics.jsonl", nothing)).last_loss()
    assert np.isnan(loss) and steps == 0


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 70))
def test_running_mean_is_the_mean_of_the_last_values(values: list[float], width: int) -> None:
    expected = [np.mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    assert _running_mean(np.array(values), width) == pytest.approx(np.array(expected), abs=1e-9)


def counted(lines: list[dict]) -> dict[int, dict]:
    """The rows that count, by the rule itself, a line at a time."""
    rows: dict[int, dict] = {}
    for line in lines:
        if "event" in line:
            rows = {step: row for step, row in rows.items() if not step > line["step"]}
        else:
            rows[line["step"]] = line
    return {step: rows[step] for step in sorted(rows)}


LINES = st.lists(
    st.one_of(
        st.builds(lambda step, loss: {**step_row(step), "loss": loss}, st.integers(1, 12), st.floats(0, 9)),
        st.builds(lambda name, step: {"event": name, "step": step}, st.sampled_from(RESTARTS), st.integers(0, 12)),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(LINES)
def test_what_counts_is_what_the_rule_leaves(tmp_path: Path, lines: list[dict]) -> None:
    path, expected = write(tmp_path / "metrics.jsonl", lines), counted(lines)
    if not expected:
        with pytest.raises(UserError, match="no training step"):
            read_history(path)
        return
    history = read_history(path)
    assert history.rows.steps.tolist() == list(expected)
    assert history.column("loss").tolist() == [row["loss"] for row in expected.values()]
    assert history.repeated == sum("event" not in line for line in lines) - len(expected)


def test_a_damaged_line_is_counted_and_nothing_more(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", [step_row(1), step_row(2)])
    damaged = [b"{", b"[]", b'{"step": 3}', b'{"step": -1, "tokens": 5}', b'{"step": 1e3, "tokens": 5}', b"\xff\xfe"]
    damaged += [b"[" * 100_000, b'{"step": true, "tokens": 5}', b'{"event": 3}']
    path.write_bytes(path.read_bytes() + b"\n".join([*damaged, b"", b"  ", b'{"step": 4, "tokens": 5, "loss": NaN}']))
    history = read_history(path)
    assert (history.unreadable, history.rows.steps.tolist()) == (len(damaged), [1, 2, 4])
    assert np.isnan(history.column("loss")[2])
