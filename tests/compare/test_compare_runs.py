"""Comparisons of runs whose differences are known, and of folders that are not as they should be."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_kaiyuan.compare.compare import Comparison, compare_runs
from megatron_kaiyuan.compare.evaluation import loss_by_position
from megatron_kaiyuan.compare.figures import _by_position
from megatron_kaiyuan.compare.measures import Measure
from megatron_kaiyuan.compare.records import as_record
from megatron_kaiyuan.compare.show import as_text
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.sample_run import write_phase

STEP_TOKENS = 1000
BEGUN = 1_750_000_000.0
Rows = list[dict[str, Any]]


def rows_of(losses: np.ndarray, **columns: float) -> Rows:
    return [
        {"step": step, "tokens": step * STEP_TOKENS, "loss": loss, "loss_mean": loss, "loss_steps": 1,
         "tokens_per_second": 500.0 + step % 7, "time": BEGUN + 2 * step, **columns}
        for step, loss in enumerate(losses.tolist(), 1)
    ]  # fmt: skip


def noise(seed: int, count: int = 400, spread: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, spread, count)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    phase = write_phase(tmp_path / "phase", "only", "shuffle", 10**7, {"web": (0.4, 0.6)})

    def write(name: str, rows: Rows, evaluation: Any = None, phase: Path = phase, **train: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        start = {"event": "start", "step": 0, "world_size": 1, "platform": "cpu", "time": BEGUN}
        used = {"event": "utilization", "flops_per_token": 600, "device": "some CPU", "time": BEGUN}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [start, used, *rows]))
        config = {
            "run_dir": str(folder),
            "model": {"preset": "kaiyuan-tiny"},
            "data": {"phases": [{"path": str(phase), "peak_lr": 1e-3}]},
            "train": {"seq_length": 250, "micro_batch_size": 2, "global_batch_size": 4, **train},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if evaluation is not None:
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return folder

    return write


def measure(found: Comparison, begins: str) -> Measure:
    return next(one for one in found.measures if one.what.startswith(begins))


def verdicts(found: Comparison, begins: str) -> list[str]:
    of = measure(found, begins)
    return [one.verdict(of.better) if one else "" for one in of.differences]


def test_pairs_see_what_the_noise_of_documents_hides(make: Callable[..., Path]) -> None:
    """A gain of .01 beside losses that go up and down by .2 with their documents, the same in both runs."""
    shared = noise(0)
    base = make("base", rows_of(shared))
    better = make("better", rows_of(shared - 0.01 + noise(1, spread=0.005) - 3.0))
    found = compare_runs([base, better])
    (_, apart) = measure(found, "training loss").differences
    assert apart.paired and apart.interval.points == 40 and apart.interval.value == pytest.approx(-0.01, abs=0.003)
    assert verdicts(found, "training loss") == ["", "better"]

    other = make("other_order", rows_of(noise(2) - 0.01), phase=base.parent / "elsewhere")
    found = compare_runs([base, other])
    (_, apart) = measure(found, "training loss").differences
    assert not apart.paired and verdicts(found, "training loss") == ["", "cannot tell"]
    assert any("without pairs" in note for note in found.notes)


def test_a_difference_no_larger_than_that_of_seeds_counts_for_nothing(make: Callable[..., Path]) -> None:
    shared = noise(0)
    folders = [
        make("base", rows_of(shared), seed=1),
        make("seed_2", rows_of(shared - 0.02 + noise(1, spread=0.001) - 3.0), seed=2),
        make("little", rows_of(shared - 0.01 + noise(2, spread=0.001) - 3.0), z_loss=1e-4),
        make("much", rows_of(shared - 0.05 + noise(3, spread=0.001) - 3.0), z_loss=1e-3),
    ]
    by_seeds = "cannot tell: seeds differ by as much"
    assert verdicts(compare_runs(folders), "training loss") == ["", by_seeds, by_seeds, "better"]
    without = [folders[0], *folders[2:]]
    assert verdicts(compare_runs(without), "training loss") == ["", "better", "better"]


def test_runs_of_different_length_are_compared_where_the_shortest_ends(make: Callable[..., Path]) -> None:
    falling = 5 - np.arange(1, 401) / 100 + noise(0, spread=0.01) - 3.0
    folders = [make("short", rows_of(falling[:200])), make("long", rows_of(falling))]
    found = compare_runs(folders)
    assert (found.window.begin, found.window.end) == (180_000, 200_000)
    values = [one.value for one in measure(found, "training loss, ").estimates]
    assert values[0] == values[1] == pytest.approx(falling[180:200].mean())
    own = measure(found, "training loss at each run's own end")
    assert own.estimates[1].value == pytest.approx(falling[380:].mean()) and own.differences == [None, None]
    assert any("compared where the shortest ends, at token 200,000" in note for note in found.notes)

    found = compare_runs(folders, last_tokens=50_000)
    assert measure(found, "training loss, ").estimates[0].value == pytest.approx(falling[150:200].mean())
    whole = compare_runs(folders, last_tokens=10**15)
    assert whole.window.begin == 0


def test_time_leaves_out_pauses_and_keeps_what_was_trained_again(make: Callable[..., Path]) -> None:
    """400 steps of 2 s; killed after 300, an hour off, resumed from 250: 50 steps twice, and 10 s to start."""
    steady = rows_of(noise(0))
    resumed = BEGUN + 600 + 3600
    again = [{**row, "time": resumed + 10 + 2 * (row["step"] - 250)} for row in steady[250:]]
    change = {"event": "config_change", "step": 250, "changes": {"train.z_loss": {}}, "time": resumed - 1}
    resume = {"event": "resume", "step": 250, "world_size": 2, "platform": "cpu", "time": resumed}
    folders = [make("steady", steady), make("killed", [*steady[:300], change, resume, *again])]
    found = compare_runs(folders)
    assert [run.seconds[-1] for run in found.runs] == [800.0, 600.0 + 10 + 300]
    assert found.runs[1].seconds[:250].tolist() == found.runs[0].seconds[:250].tolist()
    clock = measure(found, "wall clock to token 400,000")
    assert [one.value for one in clock.estimates] == [800.0, 910.0]
    assert [one.value for one in measure(found, "restarts").estimates] == [0, 1]
    assert [run.flops[-1] for run in found.runs] == [600 * 400_000] * 2, "what was trained again counts once"
    assert "killed: changed on the way, at step 250: train.z_loss" in found.all_notes()
    assert [field.field for field in found.environment] == ["world_size"]


def test_fields_that_differ_are_named_with_what_they_change(make: Callable[..., Path], tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "phase", copied)
    folders = [
        make("a", rows_of(noise(0))),
        make("b", rows_of(noise(0)), phase=copied, seed=7),
        make("c", rows_of(noise(0)), z_loss=1e-4),
    ]
    found = compare_runs(folders)
    fields = {field.field: (field.meaning, field.values) for field in found.configuration}
    assert fields == {
        "train.seed": ("another start", [1234, 7, 1234]),
        "train.z_loss": ("other steps", [0.0, 0.0, 1e-4]),
    }, "a phase of the same bytes in another place is the same"
    assert found.runs[0].order == found.runs[1].order


def evaluation(loss: float, right: float, **more: Any) -> dict[str, Any]:
    held_out = {"nats_per_token": loss, "bits_per_byte": loss / 3, "domains": {"code": {"nats_per_token": loss - 1}}}
    model = {"name": "run, step 400", "held_out": held_out, "tasks": {"arc_easy": {"acc": right, "alias": "arc"}}}
    return {"model": model, "baseline": None, "items": {"arc_easy": 1000}, **more}


def test_evaluations_are_compared_by_their_standard_errors(make: Callable[..., Path]) -> None:
    with_error = evaluation(2.9, 0.61)
    with_error["model"]["tasks"]["arc_easy"]["acc_stderr"] = 0.001
    folders = [
        make("a", rows_of(noise(0)), evaluation(3.0, 0.60)),
        make("b", rows_of(noise(0)), evaluation(2.9, 0.61)),
        make("c", rows_of(noise(0)), evaluation(2.9, 0.80)),
        make("d", rows_of(noise(0)), with_error),
    ]
    found = compare_runs(folders)
    assert verdicts(found, "arc_easy") == ["", "cannot tell", "better", "cannot tell"]
    low, high = (getattr(measure(found, "arc_easy").estimates[3], name) for name in ("low", "high"))
    assert (low, high) == pytest.approx((0.61 - 1.96 * 0.001, 0.61 + 1.96 * 0.001), abs=1e-6)
    assert [one.what for one in found.measures if one.what.startswith("held-out")] == [
        "held-out loss", "held-out loss, code", "held-out loss",
    ]  # fmt: skip
    assert measure(found, "held-out loss").differences[1].interval.value == pytest.approx(-0.1)
    assert {one.better for one in found.measures if one.what.startswith("held-out")} == {"lower"}

    other = make("e", rows_of(noise(0)), evaluation(2.0, 0.9, made_from={"arc_easy": "x", "held_out": "y"}))
    of = measure(compare_runs([folders[0], other]), "arc_easy")
    assert of.differences == [None, None] and "other data" in of.note


def test_machine_and_software_that_differ_are_named(make: Callable[..., Path]) -> None:
    def started(git: str, norm: str) -> Rows:
        software = {"event": "environment", "git": git, "versions": {"torch": "2.13"}, "time": BEGUN, "step": 0}
        chosen = {"event": "implementations", "table": [{"op": "norm", "implementation": norm}, "torn"], "time": BEGUN}
        return [software, chosen, *rows_of(noise(0))]

    runs = {"a": started("1a", "torch"), "b": started("2b", "Liger"), "c": rows_of(noise(0))}
    found = compare_runs([make(name, rows) for name, rows in runs.items()])
    fields = {field.field: field.values for field in found.environment}
    assert fields == {
        "git": ["1a", "2b", None],
        "versions.torch": ["2.13", "2.13", None],
        "implementation of norm": ["torch", "Liger", None],
    }


POSITIONS = ((0, 1, 9.0), (1, 4, 5.0))


def test_calibration_is_compared_and_positions_are_drawn(make: Callable[..., Path]) -> None:
    results = [evaluation(3.0, 0.6), evaluation(3.0, 0.6)]
    for one, error in zip(results, (0.125, 0.25), strict=True):
        one["model"]["calibration"] = {"arc_easy": {"items": 1000, "expected_calibration_error": error, "bins": []}}
        bins = [{"from": start, "to": end, "tokens": 9, "nats_per_token": nats} for start, end, nats in POSITIONS]
        one["model"]["held_out"]["by_position"] = bins
    found = compare_runs([make("a", rows_of(noise(0)), results[0]), make("b", rows_of(noise(0)), results[1])])
    of = next(one for one in found.measures if one.unit == "expected calibration error")
    assert (of.better, of.differences[1].interval.value) == ("lower", 0.125)
    assert loss_by_position(found.runs[0].evaluation) == [(1.0, 9.0), (math.sqrt(2 * 4), 5.0)]
    assert [figure.title for figure in _by_position(found.runs)] == ["Loss by position"]


def test_validation_is_compared_at_its_last_common_tokens(make: Callable[..., Path]) -> None:
    def validated(losses: list[float]) -> Rows:
        rows = rows_of(noise(0))
        for place, loss in enumerate(losses):
            rows[100 * place + 99]["validation/web_loss"] = loss
        return rows

    folders = [
        make("a", validated([4.0, 3.5, 3.25])),
        make("b", validated([4.0, 3.0, 2.5, 2.25])),
        make("c", rows_of(noise(0))),
    ]
    of = measure(compare_runs(folders), "validation/web_loss")
    assert [one and one.value for one in of.estimates] == [3.25, 2.25, None]
    assert of.differences[1].interval.value == 2.5 - 3.25 and of.differences[2] is None


def test_text_and_record_say_the_same(make: Callable[..., Path]) -> None:
    shared = noise(0)
    found = compare_runs([make("a", rows_of(shared), evaluation(3.0, 0.6)), make("b", rows_of(shared + 0.5))])
    record = json.loads(json.dumps(as_record(found), allow_nan=False))
    (loss, *_) = record["measures"]
    text = as_text(found)
    for shown in (loss["values"][1], loss["differences"][1]):
        assert f"{shown['value']:.4f} [" in text and f"{shown['high']:.4f}]" in text
    assert loss["differences"][1]["verdict"] == "worse" and "worse, 40 pairs" in text
    assert [run["tokens"] for run in record["runs"]] == [400_000, 400_000]
    assert record["runs"][0]["evaluated"] == "run, step 400" and record["runs"][1]["evaluated"] is None
    assert "b: no evaluation.json" in text


def test_mistakes_are_one_line(make: Callable[..., Path], tmp_path: Path) -> None:
    run = make("a", rows_of(noise(0)))
    for folders, words in (
        ([run], "takes 2 to 20 different runs and got 1"),
        ([run, run, tmp_path / "a" / ".." / "a"], "takes 2 to 20 different runs and got 1"),
        ([run, tmp_path / "none"], r"none/metrics\.jsonl: metrics cannot be read"),
        ([run, run / "metrics.jsonl"], "is a file; name the folder of a run; it belongs to the run"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            compare_runs(folders)
        assert "\n" not in str(caught.value)
    empty = make("empty", [])
    with pytest.raises(UserError, match="holds no training step"):
        compare_runs([run, empty])
    other = make("b", rows_of(noise(1)))
    assert any("named before" in note for note in compare_runs([run, other, run]).notes)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {"held_out": null, "tasks": {"x": 3}}}'])
def test_what_is_damaged_is_noted_and_the_rest_is_compared(make: Callable[..., Path], content: str) -> None:
    folders = [make(name, rows_of(noise(0))) for name in "ab"]
    (folders[1] / "evaluation.json").write_text(content)
    (folders[1] / "config.yaml").write_text("[")
    with open(folders[1] / "metrics.jsonl", "a") as file:
        file.write('{"step": 401, "tok')
    found = compare_runs(folders)
    notes = "\n".join(found.runs[1].notes)
    assert "evaluation: " in notes and "configuration: " in notes and "1 unreadable line" in notes
    assert verdicts(found, "training loss") == ["", "cannot tell"]
    assert as_text(found)


@pytest.mark.parametrize("loss", [math.nan, None])
def test_a_run_without_a_finite_loss_is_compared_by_the_rest(make: Callable[..., Path], loss: float | None) -> None:
    """As rows of older versions are, which knew neither time nor means."""
    broken = [{"step": step, "tokens": step * STEP_TOKENS, "loss": loss} for step in range(1, 31)]
    folders = [make("a", rows_of(noise(0))), make("b", broken), make("c", rows_of(noise(0)))]
    found = compare_runs(folders)
    assert [one is None for one in measure(found, "training loss, ").estimates] == [False, True, False]
    assert "no row has a finite loss" in found.runs[1].notes
    assert as_text(found) and json.dumps(as_record(found), allow_nan=False)
    turned = compare_runs([folders[1], folders[0]])
    assert measure(turned, "training loss, ").differences == [None, None]
