"""A restart changes nothing, bit for bit; damage is found and an older checkpoint is used."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from data_tools.curriculum.build import build_recipe
from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import (
    TOKENS_PER_STEP,
    at_work,
    losses,
    metrics,
    start_from,
    succeed,
    train,
    write_corpus,
)


def test_resume_is_bitwise(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "resumed")
    done = train(2, recipe, f"run_dir={run_dir}")
    assert done.returncode == 0 and "resume: step 10" in done.stderr, done.stderr[-3000:]
    assert losses(run_dir) == losses(finished_run)[10:]
    assert_same_state(run_dir / "checkpoints" / "step_20", finished_run / "checkpoints" / "step_20")


def test_sigterm_saves_and_the_same_command_goes_on(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    """To both ranks; `tests/cluster/test_torchrun.py` and `tests/launch` send it to launchers."""
    run_dir = tmp_path / "interrupted"
    with at_work(2, recipe, f"run_dir={run_dir}") as job:
        deadline = time.monotonic() + 120
        while not (run_dir / "metrics.jsonl").exists() or len(metrics(run_dir)) < 2:
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        job.send_signal(signal.SIGTERM)
        assert job.exit_codes(60) == [143, 143]
    stopped_at = max(metrics(run_dir))
    assert (run_dir / "latest").read_text().strip() == f"step_{stopped_at}"
    succeed(2, recipe, f"run_dir={run_dir}")
    assert losses(run_dir) == losses(finished_run)
    assert_same_state(run_dir / "checkpoints" / "step_20", finished_run / "checkpoints" / "step_20")


def test_damaged_checkpoint_is_named_and_an_older_one_used(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "damaged"
    for step in (0, 10):
        start_from(finished_run, step, run_dir)
    victim = next((run_dir / "checkpoints" / "step_10").glob("*.distcp"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = train(1, recipe, f"run_dir={run_dir}", "train.train_tokens=512")
    assert done.returncode == 0, done.stderr
    assert f"{victim}: damaged, checksum" in done.stderr
    assert "resume: step 0," in done.stderr


def test_no_whole_checkpoint_is_refused(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path)
    next((run_dir / "checkpoints" / "step_10").glob("*.distcp")).unlink()
    done = train(1, recipe, f"run_dir={run_dir}")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "no checkpoint is whole" in done.stderr


def test_another_network_is_refused(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "other")
    done = train(2, recipe, f"run_dir={run_dir}", "model.num_layers=4")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "model.num_layers was 2, is 4" in done.stderr


def test_another_sequence_length_and_batch_go_on_behind_the_last_token(
    recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "longer")
    succeed(2, recipe, f"run_dir={run_dir}", "train.seq_length=96", "train.global_batch_size=4")
    steps = metrics(run_dir)
    assert steps[11]["tokens"] == 10 * TOKENS_PER_STEP + 4 * 96
    assert steps[max(steps)]["tokens"] <= 20 * TOKENS_PER_STEP < steps[max(steps)]["tokens"] + 4 * 96


def test_another_corpus_under_the_same_names_is_refused_by_name(
    recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """First the corpus alone is another, then the phases are built again from it."""
    shutil.copytree(recipe.parent / "corpus", tmp_path / "corpus")
    corpora = [f"corpora.text={tmp_path / 'corpus' / 'text'}"]
    build_recipe(recipe.parent / "order.yaml", corpora, tmp_path / "phases", None, 1)
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    write_corpus(tmp_path / "corpus" / "text", seed=1)
    overrides = [f"run_dir={run_dir}"]
    overrides += [f"data.phases.{i}.path={tmp_path / 'phases' / name}" for i, name in enumerate(("first", "second"))]
    done = train(2, recipe, *overrides)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1
    assert "corpus 'text'" in done.stderr and "changed since the order was built" in done.stderr
    build_recipe(recipe.parent / "order.yaml", corpora, tmp_path / "phases", None, 1, force=True)
    done = train(2, recipe, *overrides)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1
    assert "cannot be resumed: " in done.stderr and "corpora.text of phase 'first' was 'xxh3:" in done.stderr
