"""Runs that are measured on tasks of lm-eval: what the table holds, and what decides a fingerprint."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.cloze import ClozeTask, Item, read_task, write_task
from megatron_kaiyuan.research.queue import Run, run_all
from megatron_kaiyuan.research.queue.request import read_list, write_list
from megatron_kaiyuan.research.queue.task import Tasks
from tests.helpers.training.run_lists import make_run, make_runs
from tests.helpers.training.small_run import succeed
from tests.helpers.training.tiny_model import write_tokenizer

# The tokenizer's 257 ids; the network's weights are FP32, so that an export computes the same.
NETWORK = ("model.vocab_size=257", "optimizer.weight_decay=0.0")
ITEMS = (Item("a b c", " d e"), Item("", "five"), Item("Question: 五?\nAnswer:", " 六"), Item("x" * 90, "y"))


def measured(run: Run, folder: Path) -> Run:
    """The run, measured on one task besides its domains."""
    write_tokenizer(folder / "tokenizer")
    path = write_task(ClozeTask("letters", ITEMS), folder)
    return replace(run, tasks={"letters": path}, tokenizer=folder / "tokenizer")


def fingerprint(run: Run) -> str:
    tasks = Tasks(Path("queue"))
    return tasks.make(run, tasks.load(run), "cpu").fingerprint


def test_the_table_holds_what_transformers_gives_the_answers(queue_recipe: Path, tmp_path: Path) -> None:
    """By hand on the exported model: no code of lm-eval or of the queue."""
    run = measured(make_run(queue_recipe, "only", *NETWORK, "train.seed=3", steps=6), tmp_path)
    (row,) = run_all(tmp_path / "queue", [run], slots=1)
    succeed(1, queue_recipe, f"run_dir={tmp_path / 'train'}", *run.overrides)

    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.export.loading import load_network, load_tokenizer
    from megatron_kaiyuan.export.run import export_checkpoint

    with single_process(device):
        export_checkpoint(tmp_path / "train" / "checkpoints" / "step_6", tmp_path / "exported", None)
    network, tokenizer = load_network(tmp_path / "exported"), load_tokenizer(tmp_path / "tokenizer")
    bits = 0.0
    for item in ITEMS:
        answer = tokenizer.encode(item.answer)
        ids = [*(tokenizer.encode(item.context) or [tokenizer.eos_token_id]), *answer]
        # The run reads 64 tokens: a longer context loses its beginning.
        ids = ids[-65:]
        with torch.no_grad():
            rows = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        bits -= sum(rows[at - 1, ids[at]].item() for at in range(len(ids) - len(answer), len(ids))) / math.log(2)
    size = len("d efive六y".encode())
    assert row["bits_per_byte/task:letters"] == pytest.approx(bits / size, rel=1e-4)
    assert {"bits_per_byte/code", "bits_per_byte/prose"} <= set(row)


def test_a_fingerprint_is_of_what_is_scored(queue_recipe: Path, tmp_path: Path) -> None:
    plain = make_run(queue_recipe, "a", *NETWORK)
    run = measured(plain, tmp_path)
    here = fingerprint(run)
    assert here != fingerprint(plain)
    # Another place, and another time: the same.
    assert fingerprint(measured(plain, tmp_path / "copy")) == here
    other = write_task(ClozeTask("letters", (*ITEMS[:-1], Item("x" * 90, "z"))), tmp_path)
    assert fingerprint(replace(run, tasks={"letters": other})) != here
    assert fingerprint(replace(run, tasks={"other name": run.tasks["letters"]})) != here
    config = tmp_path / "tokenizer" / "tokenizer.json"
    config.write_text(config.read_text() + "\n")
    assert fingerprint(run) != here


def test_a_list_keeps_tasks(queue_recipe: Path, tmp_path: Path) -> None:
    run = measured(make_runs(queue_recipe, 1)[0], tmp_path)
    (read,) = read_list(write_list(tmp_path, [run]))
    assert (read.tasks, read.tokenizer) == (run.tasks, run.tokenizer)
    assert read_task(read.tasks["letters"]).items == ITEMS
    with pytest.raises(UserError, match="tasks need a tokenizer"):
        write_list(tmp_path, [replace(run, tokenizer=None)])


def test_a_damaged_task_is_named_before_anything_is_trained(queue_recipe: Path, tmp_path: Path) -> None:
    run = measured(make_runs(queue_recipe, 1)[0], tmp_path)
    run.tasks["letters"].write_text("{}")
    with pytest.raises(UserError, match=r"run 'seed=0': .*letters-.*json"):
        run_all(tmp_path / "queue", [run], slots=1)
    assert not (tmp_path / "queue" / "runs").exists()
