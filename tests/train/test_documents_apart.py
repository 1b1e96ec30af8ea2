"""Documents kept apart: the loss and the gradient are those of each document alone, whatever the layout of ranks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.data.indexed import IndexedCorpus
from tests.helpers.references.documents_alone import loss_and_gradient_norm
from tests.helpers.training.small_run import SEQ_LENGTH, TOKENS_PER_STEP, losses, metrics, start_from, succeed, train

RESETS = ["data.reset_position_ids=true", "data.reset_attention_mask=true"]
ALL = [*RESETS, "data.eod_mask_loss=true"]
LAYOUTS = {
    "dp2": (2, []),
    "tp2-pp2": (
        4,
        [
            "parallel.tensor_model_parallel_size=2",
            "parallel.pipeline_model_parallel_size=2",
            "parallel.sequence_parallel=true",
        ],
    ),
    "one process, other micro-batch": (1, ["train.micro_batch_size=8"]),
}


@pytest.fixture(scope="module")
def one_process(recipe: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with all options."""
    run_dir = start_from(finished_run, 0, tmp_path_factory.mktemp("one_process"))
    succeed(1, recipe, f"run_dir={run_dir}", f"train.train_tokens={3 * TOKENS_PER_STEP}", *ALL)
    return run_dir


def documents(run: RunConfig) -> list[np.ndarray]:
    """The first phase's documents, straight from the files."""
    folder = run.data.phases[0].path
    corpus = IndexedCorpus(folder.parent.parent / "corpus" / "text")
    return [corpus.tokens(int(entry)).astype(np.int64) for entry in np.fromfile(folder / "order.bin", "<u8")]


def first_step(run: RunConfig, across: bool, labels_across: bool) -> tuple[float, float]:
    """Loss and gradient norm of the first global batch, one piece of a document at a time.

    Args:
        across: attention crosses documents.
        labels_across: the first token of a document counts as a label.
    """
    whole = documents(run)
    tokens = np.concatenate(whole)
    starts = {0, *np.cumsum([len(document) for document in whole]).tolist()}
    pieces = []
    for sample in range(0, TOKENS_PER_STEP, SEQ_LENGTH):
        inside = [] if across else [at for at in range(sample + 1, sample + SEQ_LENGTH) if at in starts]
        for first, last in pairwise([sample, *inside, sample + SEQ_LENGTH]):
            counts = [labels_across or at + 1 not in starts for at in range(first, last)]
            pieces.append((tokens[first : last + 1], counts))
    return loss_and_gradient_norm(run, pieces)


@pytest.mark.parametrize(
    ("overrides", "across", "labels_across"),
    [(RESETS, False, True), (["data.eod_mask_loss=true"], True, False)],
)
def test_first_step_is_that_of_each_document_alone(
    overrides: list[str], across: bool, labels_across: bool, recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = load_run(recipe, overrides)
    start_from(finished_run, 0, tmp_path)
    succeed(1, recipe, f"run_dir={tmp_path}", f"train.train_tokens={TOKENS_PER_STEP}", *overrides)
    row = metrics(tmp_path)[1]
    np.testing.assert_allclose((row["loss"], row["grad_norm"]), first_step(run, across, labels_across), rtol=1e-5)
    assert abs(row["loss"] - metrics(finished_run)[1]["loss"]) > 1e-5


def test_first_step_with_all_options(recipe: Path, one_process: Path) -> None:
    row = metrics(one_process)[1]
    expected = first_step(load_run(recipe, ALL), False, False)
    np.testing.assert_allclose((row["loss"], row["grad_norm"]), expected, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_process(
    layout: str, recipe: Path, finished_run: Path, one_process: Path, tmp_path: Path
) -> None:
    processes, overrides = LAYOUTS[layout]
    run_dir = start_from(finished_run, 0, tmp_path)
    succeed(processes, recipe, f"run_dir={run_dir}", f"train.train_tokens={3 * TOKENS_PER_STEP}", *ALL, *overrides)
    assert len(losses(run_dir)) == 3
    np.testing.assert_allclose(losses(run_dir), losses(one_process), rtol=2e-6)


def test_positions_alone_are_refused(recipe: Path, tmp_path: Path) -> None:
    done = train(1, recipe, f"run_dir={tmp_path / 'run'}", "data.reset_position_ids=true")
    assert done.returncode == 2 and done.stderr.count("error: ") == 1
    assert "data: reset_position_ids changes nothing alone" in done.stderr
