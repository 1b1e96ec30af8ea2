"""What may change between two starts of one run, and what is carried over; what makes it another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from megatron_kaiyuan.files import write_sealed_json
from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import SEQ_LENGTH, TOKENS_PER_STEP, metrics, start_from, train


def test_batch_length_and_rate_change_and_the_position_is_carried_over(
    recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run_dir = start_from(finished_run, 10, tmp_path)
    changes = ["train.global_batch_size=12", f"train.seq_length={2 * SEQ_LENGTH}", "data.phases.0.peak_lr=1e-3"]
    done = train(2, recipe, f"run_dir={run_dir}", *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(run_dir)
    batch = 12 * 2 * SEQ_LENGTH
    # 5,120 tokens are left of 10,240: three whole batches of 1,536.
    assert [rows[step]["tokens"] for step in sorted(rows)] == [10 * TOKENS_PER_STEP + n * batch for n in (1, 2, 3)]
    assert rows[11]["lr"] == 1e-3 and rows[13]["loss"] < rows[11]["loss"]
    assert "train: step 13/13, 9,728 tokens, finished" in done.stdout
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (event,) = [row for row in events if row.get("event") == "config_change"]
    assert event["changes"]["train.seq_length"] == {"was": 64, "now": 128}
    assert event["changes"].keys() == {"train.seq_length", "train.global_batch_size", "data.phases.0.peak_lr"}
    (line,) = [line for line in done.stderr.splitlines() if "continues changed" in line]
    assert "train.global_batch_size was 8, is 12" in line

    # The same settings again: nothing has changed, nothing is left to do.
    again = train(1, recipe, f"run_dir={run_dir}", *changes)
    assert again.returncode == 0 and "continues changed" not in again.stderr
    assert "train: step 13/13" in again.stdout


def test_a_phase_that_is_still_ahead_may_be_built_anew(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    phase = tmp_path / "second"
    shutil.copytree(recipe.parent / "phases" / "second", phase)
    manifest = json.loads((phase / "manifest.json").read_text())
    corpora = [{**entry, "path": str(recipe.parent / "corpus" / "text")} for entry in manifest["corpora"]]
    write_sealed_json(phase / "manifest.json", {**manifest, "corpora": corpora, "name": "new second"})
    done = train(1, recipe, f"run_dir={run_dir}", f"data.phases.1.path={phase}", "train.train_tokens=5120")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "name of phase 'second' was 'second', is 'new second'" in done.stderr


def test_phases_of_another_tokenizer_are_refused(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    paths = []
    for number, name in enumerate(("first", "second")):
        phase = tmp_path / name
        shutil.copytree(recipe.parent / "phases" / name, phase)
        manifest = json.loads((phase / "manifest.json").read_text())
        for entry in manifest["corpora"]:
            entry["path"] = str(recipe.parent / "corpus" / "text")
            entry["tokenizer"]["fingerprint"] = "xxh3:1"
        write_sealed_json(phase / "manifest.json", manifest)
        paths.append(f"data.phases.{number}.path={phase}")
    done = train(1, recipe, f"run_dir={run_dir}", *paths)
    assert done.returncode == 2
    assert "the tokenizer of the corpora was 'xxh3:0', is 'xxh3:1'" in done.stderr

    source = finished_run / "checkpoints" / "step_10"
    done = train(1, recipe, f"run_dir={tmp_path / 'new'}", f"init_from={source}", *paths)
    assert done.returncode == 2
    assert "another tokenizer made the corpora here (fingerprint xxh3:1, not xxh3:0)" in done.stderr


def test_a_stop_does_not_bend_the_learning_rate(recipe: Path, tmp_path: Path) -> None:
    """A run that stops in a decay and continues is the uninterrupted run, bit for bit."""
    decay = ["data.phases.0.final_lr=1e-3", "data.phases.0.decay_fraction=1.0"]
    for name, stops in (("whole", (8,)), ("stopped", (5, 8))):
        for step in stops:
            tokens = f"train.train_tokens={step * TOKENS_PER_STEP}"
            assert train(1, recipe, f"run_dir={tmp_path / name}", tokens, *decay).returncode == 0
    assert_same_state(*(tmp_path / name / "checkpoints" / "step_8" for name in ("stopped", "whole")))
    rates = [row["lr"] for _, row in sorted(metrics(tmp_path / "stopped").items())]
    assert rates == [row["lr"] for _, row in sorted(metrics(tmp_path / "whole").items())]
    # The phase is longer than the run.
    assert rates[-1] > 2e-3
