"""Samples of a run on any layout are those of `kaiyuan generate` on its checkpoints; training does not feel them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.generate.sampling import Sampling
from tests.helpers.training.layouts import LAYOUTS, on_layouts
from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import events, fit_here, start_from, succeed, train, write_recipe_and_tokenizer
from tests.helpers.training.tiny_model import write_tokenizer

PROMPTS = ["The sea is", "中文"]
BASE = ["model.vocab_size=257", "train.train_tokens=2048"]
# Words of a network that has learned nothing are all but equal.
LEARNS = ["data.phases.0.peak_lr=3e-2"]
GREEDY = {"max_new_tokens": 6}
DRAWN = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_recipe_and_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def silent(folder: Path) -> Path:
    """The run without samples."""
    fit_here(folder / "train.yaml", *BASE, f"run_dir={folder / 'silent'}")
    return folder / "silent"


def asked(folder: Path, name: str, options: dict[str, Any], prompts: list[str] = PROMPTS) -> list[str]:
    fields = {"prompts": prompts, "tokenizer": str(folder / "tokenizer"), **options}
    given = [f"samples.{field}={json.dumps(value, ensure_ascii=False)}" for field, value in fields.items()]
    return [*BASE, f"run_dir={folder / name}", *given]


def written(run_dir: Path) -> dict[int, list[str]]:
    rows = events(run_dir, "samples")
    assert all([sample["prompt"] for sample in row["samples"]] == PROMPTS for row in rows)
    assert len(rows) == len({row["step"] for row in rows})
    return {row["step"]: [sample["text"] for sample in row["samples"]] for row in rows}


def generated(folder: Path, name: str, options: dict[str, Any], seed: int = 0) -> dict[int, list[str]]:
    """From the checkpoints, by transformers' network with a cache."""
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.generate.complete import complete
    from megatron_kaiyuan.generate.model import open_generator

    found: dict[int, list[str]] = {}
    with single_process(device):
        for step in (0, 2, 4):
            generator = open_generator(folder / name, step, folder / "tokenizer")
            for prompt in PROMPTS:
                torch.manual_seed(seed)
                found.setdefault(step, []).append(complete(generator, prompt, Sampling(**options))[0].text)
    return found


def test_texts_of_checkpoints_and_not_a_bit_of_training_is_another(folder: Path, silent: Path) -> None:
    fit_here(folder / "train.yaml", *asked(folder, "drawn", {**DRAWN, "seed": 3}))
    assert written(folder / "drawn") == generated(folder, "drawn", DRAWN, seed=3)
    assert len({str(texts) for texts in written(folder / "drawn").values()}) == 3
    for step in (2, 4):
        assert_same_state(*(run / "checkpoints" / f"step_{step}" for run in (silent, folder / "drawn")))
    # Asked for at a resume; step 2 was another job's.
    start_from(silent, 2, folder / "resumed")
    fit_here(folder / "train.yaml", *asked(folder, "resumed", {**GREEDY, "every_steps": 1}))
    assert written(folder / "resumed").keys() == {3, 4}
    assert_same_state(*(run / "checkpoints" / "step_4" for run in (silent, folder / "resumed")))


@on_layouts("both", slow=("overlapped", "virtual", "tensor", "recomputed"))
def test_on_many_ranks(folder: Path, layout: str) -> None:
    ranks, fields = LAYOUTS[layout]
    succeed(ranks, folder / "train.yaml", *asked(folder, layout, GREEDY), *LEARNS, *fields)
    found = written(folder / layout)
    assert found == generated(folder, layout, GREEDY)
    assert len({str(texts) for texts in found.values()}) > 1


def test_a_run_that_cannot_write_them_does_not_start(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tokenizer(other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    for prompts, change, message in (
        (["fine", "x" * 3000], [], "samples.prompts: number 2: prompt: has 3,000 tokens, and the network reads "),
        (["fine"], [f"samples.tokenizer={other}"], "other: is not the tokenizer that made the corpora of "),
    ):
        fields = asked(folder, "wrong", GREEDY, prompts)
        done = train(1, folder / "train.yaml", *fields, *change)
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
        assert not (folder / "wrong" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("samples.tokenizer=null", "samples.prompts need samples.tokenizer"),
        ("samples.top_p=0.5", "samples.top_p is for drawn tokens; set samples.do_sample"),
    ],
)
def test_wrong_fields_are_named(folder: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_run(folder / "train.yaml", [*asked(folder, "wrong", GREEDY), change])
