"""Training on packed phases: sample k is pack k, padding never counts, and the last pack is trained on too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from data_tools.curriculum.build import build_recipe
from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.data.indexed import IndexedCorpus
from tests.helpers.references.documents_alone import loss_and_gradient_norm
from tests.helpers.training.small_run import SEQ_LENGTH, TOKENS_PER_STEP, losses, metrics, succeed, train

APART = ["data.reset_attention_mask=true", "data.eod_mask_loss=true"]
PADDING = 65535


def build(recipe: Path, folder: Path, pack: int) -> Path:
    """One packed phase of the small corpus."""
    name, datasets = f"packed_{pack}", [{"corpus": "text", "keep": "random 0.04"}]
    phase = {"name": name, "order": "shuffle", "seed": 3, "pack": pack, "datasets": datasets}
    order = folder / "order.yaml"
    order.write_text(yaml.safe_dump({"corpora": {"text": str(recipe.parent / "corpus" / "text")}, "phases": [phase]}))
    build_recipe(order, (), folder, None, 1)
    return folder / name


@pytest.fixture(scope="module")
def phase(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe, tmp_path_factory.mktemp("packed"), SEQ_LENGTH)


def on(*phases: Path) -> list[str]:
    names = ", ".join(f"{{path: {phase}, peak_lr: 5.0e-3}}" for phase in phases)
    return [f"data.phases=[{names}]", "train.train_tokens=null", "optimizer.warmup_tokens=1024"]


def packs(recipe: Path, phase: Path) -> list[list[tuple[np.ndarray, bool]]]:
    """The pieces of each pack, straight from the files: ids, and whether they are padding."""
    corpus = IndexedCorpus(recipe.parent / "corpus" / "text")
    found: list[list[tuple[np.ndarray, bool]]] = [[]]
    pieces = np.fromfile(phase / "pieces.bin", "<u4").reshape(-1, 2).tolist()
    for entry, (first, tokens) in zip(np.fromfile(phase / "order.bin", "<u8").tolist(), pieces, strict=True):
        if sum(len(ids) for ids, _ in found[-1]) == SEQ_LENGTH:
            found.append([])
        padding = entry >> 48 == PADDING
        ids = np.zeros(tokens, np.int64) if padding else corpus.tokens(entry & (1 << 48) - 1, first, first + tokens)
        found[-1].append((ids, padding))
    return found


def first_step(run: RunConfig, batch: list[list[tuple[np.ndarray, bool]]], apart: bool) -> tuple[float, float]:
    """Loss and gradient norm of a global batch of packs: each piece alone, or all pieces of a pack as one text."""
    alone = []
    for pack in batch:
        real = [ids for ids, padding in pack if not padding]
        for ids in real if apart else [np.concatenate(real)]:
            if len(ids) > 1:
                alone.append((ids, [True] * (len(ids) - 1)))
    return loss_and_gradient_norm(run, alone)


@pytest.mark.parametrize("overrides", [[], APART])
def test_first_step_is_that_of_its_pieces(overrides: list[str], recipe: Path, phase: Path, tmp_path: Path) -> None:
    overrides = [*on(phase), *overrides, f"train.train_tokens={TOKENS_PER_STEP}"]
    batch = packs(recipe, phase)[: TOKENS_PER_STEP // SEQ_LENGTH]
    assert any(padding for pack in batch for _, padding in pack)
    succeed(1, recipe, f"run_dir={tmp_path}", *overrides)
    row = metrics(tmp_path)[1]
    expected = first_step(load_run(recipe, overrides), batch, apart="data.eod_mask_loss=true" in overrides)
    np.testing.assert_allclose((row["loss"], row["grad_norm"]), expected, rtol=1e-5)


def test_all_packs_in_any_layout(recipe: Path, phase: Path, tmp_path: Path) -> None:
    """Batches of one pack: as many steps as there are packs, the last one too."""
    count = len(packs(recipe, phase))
    overrides = [*on(phase), *APART, "train.global_batch_size=1", "train.micro_batch_size=1"]
    one, other = tmp_path / "one", tmp_path / "other"
    assert f"step {count}/{count}," in succeed(1, recipe, f"run_dir={one}", *overrides)
    succeed(2, recipe, f"run_dir={other}", *overrides, "parallel.tensor_model_parallel_size=2")
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-3)
    np.testing.assert_allclose(losses(other)[:5], losses(one)[:5], rtol=1e-5)


def test_refusals(recipe: Path, phase: Path, tmp_path: Path) -> None:
    other = build(recipe, tmp_path, 32)
    stream = recipe.parent / "phases" / "first"
    run_dir = f"run_dir={tmp_path / 'run'}"
    for overrides, named in (
        (
            [*on(phase), "train.seq_length=32"],
            f"train.seq_length: 32, but the phases are packed for {SEQ_LENGTH} tokens",
        ),
        (on(phase, other), f"packed_{SEQ_LENGTH} is built with pack: {SEQ_LENGTH}, packed_32 with pack: 32"),
        (on(phase, stream), f"packed_{SEQ_LENGTH} is built with pack: {SEQ_LENGTH}, first with pack: None"),
    ):
        done = train(1, recipe, run_dir, *overrides)
        assert done.returncode == 2 and done.stderr.count("error: ") == 1
        assert named in done.stderr
