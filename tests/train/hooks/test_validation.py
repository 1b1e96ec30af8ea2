"""Held-out loss in the loop: that of the checkpoint, on any layout, and not a bit of training is another."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.stop import StopOnSignal
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.votes import Votes
from tests.helpers.training.layouts import LAYOUTS, on_layouts
from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import (
    SEQ_LENGTH,
    events,
    fit_here,
    losses,
    metrics,
    start_from,
    succeed,
    train,
    write_corpus,
    write_recipe,
)

BASE = ["train.train_tokens=2048"]
DOMAINS = {"code": 40, "english": 90}
WEIGHTS = {"code": 3.0, "english": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation")
    write_recipe(folder, 2)
    for seed, (name, documents) in enumerate(DOMAINS.items(), start=5):
        write_corpus(folder / "held_out" / name, documents, seed=seed)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """The run without validation."""
    fit_here(folder / "train.yaml", *BASE, f"run_dir={folder / 'plain'}")
    return folder / "plain"


@pytest.fixture(scope="module")
def validated(folder: Path) -> Path:
    fit_here(folder / "train.yaml", *asked(folder, "validated"), "validation.every_steps=1", "validation.tokens=null")
    return folder / "validated"


def asked(folder: Path, name: str) -> list[str]:
    corpora = [f"validation.corpora.{domain}={folder / 'held_out' / domain}" for domain in DOMAINS]
    weights = [f"validation.weights.{domain}={weight}" for domain, weight in WEIGHTS.items() if weight != 1]
    return [*BASE, f"run_dir={folder / name}", *corpora, *weights]


def columns(run_dir: Path) -> dict[int, dict[str, float]]:
    found = {
        step: {name: value for name, value in row.items() if name.startswith("validation/")}
        for step, row in metrics(run_dir).items()
    }
    return {step: row for step, row in found.items() if row}


def loss_of_windows(network: torch.nn.Module, prefix: Path) -> tuple[float, int]:
    """Mean nats a token over a corpus cut into windows, by transformers and in order; how many tokens it has."""
    corpus = IndexedCorpus(prefix)
    stream = torch.from_numpy(np.concatenate([corpus.tokens(row) for row in range(len(corpus))]).astype(np.int64))
    nats = 0.0
    for start in range(0, len(stream) - 1, SEQ_LENGTH):
        window = stream[start : start + SEQ_LENGTH + 1]
        with torch.no_grad():
            logits = network(window[None, :-1]).logits[0].double()
        nats += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return nats / (len(stream) - 1), len(stream)


def test_figures_are_those_of_the_exported_checkpoint(folder: Path, validated: Path, tmp_path: Path) -> None:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.export import load_network
    from megatron_kaiyuan.export.run import export_checkpoint

    found = columns(validated)
    assert list(found) == [1, 2, 3, 4]
    for step in (2, 4):
        with single_process(device):
            export_checkpoint(validated, tmp_path / str(step), None, False, step)
        network = load_network(tmp_path / str(step))
        expected = {name: loss_of_windows(network, folder / "held_out" / name) for name in DOMAINS}
        for name, (nats, tokens) in expected.items():
            assert found[step][f"validation/{name}_loss"] == pytest.approx(nats, abs=1e-5)
            corpus_bytes = len(IndexedCorpus(folder / "held_out" / name))  # one a document, says its metadata
            bits = nats / math.log(2) * tokens / corpus_bytes
            assert found[step][f"validation/{name}_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        mean = sum(WEIGHTS[name] * nats for name, (nats, _) in expected.items()) / sum(WEIGHTS.values())
        assert found[step]["validation/loss"] == pytest.approx(mean, abs=1e-5)
    assert found[4]["validation/loss"] < found[1]["validation/loss"]


def test_not_a_bit_of_training_is_another(folder: Path, plain: Path, validated: Path) -> None:
    assert losses(plain) == losses(validated)
    for step in (2, 4):
        assert_same_state(*(run / "checkpoints" / f"step_{step}" for run in (plain, validated)))
    start_from(validated, 2, folder / "resumed")
    fit_here(folder / "train.yaml", *asked(folder, "resumed"), "validation.every_steps=1", "validation.tokens=null")
    found = columns(folder / "resumed")
    assert found == {step: row for step, row in columns(validated).items() if step in found}
    assert {3, 4} <= found.keys()


def test_a_stop_leaves_the_rest_of_a_measurement_out(
    folder: Path, plain: Path, validated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked between two corpora of step 2; the resumed run has the figures of an undisturbed one."""
    fields = [*asked(folder, "stopped"), "validation.every_steps=1", "validation.tokens=null"]
    asked_before, times = StopOnSignal.asked, iter(range(1, 100))
    stopping: list[StopOnSignal] = []

    class StopVote(Hook):
        """That of the hook which `fit_here` leaves out for its handlers."""

        def vote(self, session: Session) -> Votes:
            return Votes(stop=len(stopping))

    def asked_at_the_fourth(self: StopOnSignal, device: torch.device) -> bool:
        if next(times) == 4:
            self._number = signal.SIGTERM
            stopping.append(self)
        return asked_before(self, device)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "asked", asked_at_the_fourth)
        fit_here(folder / "train.yaml", *fields, prepare=lambda session: session.hooks.append(StopVote()))
    assert list(columns(folder / "stopped")) == [1]
    assert (folder / "stopped" / "latest").read_text().strip() == "step_3"
    fit_here(folder / "train.yaml", *fields)
    found = columns(folder / "stopped")
    assert found == {step: columns(validated)[step] for step in (1, 4)}
    assert losses(folder / "stopped") == losses(plain)


def test_when(folder: Path) -> None:
    """A row of its own where none would be written; after the last step always; half of the tokens."""
    every = "monitor.log_every_steps=100"
    for name, fields, steps in (
        ("checkpoints", [], [2, 4]),
        ("tokens", ["validation.every_tokens=1000"], [2, 4]),
        ("steps", ["validation.every_steps=3"], [3, 4]),
    ):
        fit_here(folder / "train.yaml", *asked(folder, name), every, "validation.tokens=600", *fields)
        assert list(columns(folder / name)) == steps == list(metrics(folder / name))


@on_layouts("both", slow=("overlapped", "tensor", "recomputed"))
def test_every_layout_gives_the_same_numbers(folder: Path, validated: Path, layout: str) -> None:
    """From one checkpoint: fresh weights depend on the pipeline's stages."""
    ranks, fields = LAYOUTS[layout]
    start_from(validated, 2, folder / layout)
    more = ["validation.every_steps=1", "validation.tokens=null"]
    succeed(ranks, folder / "train.yaml", *asked(folder, layout), *more, *fields)
    found, expected = columns(folder / layout), columns(validated)
    assert {3, 4} <= found.keys()
    for step in (3, 4):
        assert found[step] == pytest.approx(expected[step], rel=1e-6), step


def test_with_qk_clip_and_its_records(folder: Path) -> None:
    """What is measured and recorded in training's passes is not that of the held-out ones."""
    fields = ["model.qk_layernorm=false", "optimizer.qk_clip_tau=1e-3", "validation.every_steps=1"]
    rows = {}
    for name, given in (("clipped", [*BASE, f"run_dir={folder / 'clipped'}"]), ("both_of", asked(folder, "both_of"))):
        fit_here(folder / "train.yaml", *given, *fields)
        rows[name] = [(row["loss"], row["attention/largest_logit"]) for row in metrics(folder / name).values()]
    assert rows["clipped"] == rows["both_of"]


def test_a_corpus_that_is_trained_on_is_named(folder: Path) -> None:
    trained = next(prefix for prefix in folder.rglob("*.idx") if "held_out" not in prefix.parts).with_suffix("")
    fields = [*asked(folder, "leak"), f"validation.corpora.web={trained}", "train.train_tokens=512"]
    done = train(1, folder / "train.yaml", *fields)
    assert done.returncode == 0, done.stderr
    assert "validation.corpora.web: " in done.stderr and "its loss is not held out" in done.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["validation.weights.math=2"], "validation.weights names 'math', which is none of validation.corpora"),
        (["validation.every_steps=2", "validation.every_tokens=2k"], "every_steps and every_tokens are both set"),
        (["validation.tokens=1"], "validation.tokens 1 leaves none for some of the 2 corpora"),
        (["validation.corpora={a b: x}"], "validation.corpora"),
    ],
)
def test_wrong_fields_are_named(folder: Path, fields: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_run(folder / "train.yaml", [*asked(folder, "wrong"), *fields])


def test_wrong_corpora_stop_the_start_and_the_check(folder: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.train.run_length import check_training

    write_corpus(tmp_path / "other", 5, fingerprint="xxh3:1")
    write_corpus(tmp_path / "empty", 0)
    for prefix, message in (
        ("missing", "validation.corpora.bad: .*missing.idx"),
        ("other", "other tokenizer|two tokenizers|another tokenizer|tokenizer"),
        ("empty", "validation.corpora.bad: .*nothing|no token|empty"),
    ):
        with pytest.raises(UserError, match=message):
            check_training(
                folder / "train.yaml", [*asked(folder, "wrong"), f"validation.corpora.bad={tmp_path / prefix}"], 1
            )
    assert not (folder / "wrong").exists()
    assert not events(folder / "validated", "checkpoint_problem")
