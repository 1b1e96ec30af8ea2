from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.compare import Change, compare, flatten, is_refused

RECIPE: dict[str, Any] = {
    "run_dir": "runs/a",
    "model": {"preset": "kaiyuan-tiny"},
    "data": {"phases": [{"path": "phases/first", "peak_lr": 1e-3}]},
    "train": {"seq_length": 64, "micro_batch_size": 2, "global_batch_size": 8},
}


def resolved(**changes: dict[str, Any]) -> dict[str, Any]:
    values = {name: {**section} if isinstance(section, dict) else section for name, section in RECIPE.items()}
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return RunConfig.model_validate(values).model_dump(mode="json")


REFUSED = [
    {"model": {"num_layers": 8}},
    {"model": {"vocab_size": 8193}},
    {"model": {"rotary_base": 10_000}},
    {"model": {"logits_soft_cap": None}},
    {"model": {"sandwich_norm": False}},
    {"model": {"embedding_norm": True}},
    {"model": {"fp32_residual": True}},
    {"model": {"fp32_head": True}},
    {"train": {"precision": "bf16"}},
    {"train": {"seed": 7}},
    {"model": {"init_method_std": 0.01}},
    {"optimizer": {"initial_loss_scale": 1024.0}},
]
TUNABLE = [
    {"train": {"global_batch_size": 16}},
    {"train": {"seq_length": 128}},
    {"train": {"train_tokens": 10}},
    {"data": {"phases": [{"path": "phases/first", "peak_lr": 2e-3}]}},
    {"data": {"phases": [{"path": "elsewhere/first", "peak_lr": 1e-3}]}},
    {"optimizer": {"weight_decay": 0.2}},
    {"parallel": {"use_distributed_optimizer": False}},
    {"parallel": {"tensor_model_parallel_size": 2}},
    {"checkpoint": {"keep_last": 3}},
    {"monitor": {"log_every_steps": 1}},
    {"model": {"max_position_embeddings": 4096}},
]


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_refused(change: dict[str, Any]) -> None:
    (found,) = compare(resolved(), resolved(**change))
    assert is_refused(found)


@pytest.mark.parametrize("change", TUNABLE)
def test_what_may_change(change: dict[str, Any]) -> None:
    (found,) = compare(resolved(), resolved(**change))
    assert not is_refused(found)


def test_a_difference_is_readable() -> None:
    changed = resolved(train={"global_batch_size": 16}, model={"preset": None, **resolved()["model"]})
    found = compare(resolved(), changed)
    assert [str(change) for change in found] == ["train.global_batch_size was 8, is 16"]
    assert found == [Change("train.global_batch_size", 8, 16)]


def test_where_the_run_lies_is_no_change() -> None:
    assert compare(resolved(), {**resolved(), "run_dir": "runs/b"}) == []


def test_configurations_of_other_versions() -> None:
    """A field that did not exist has its default; one that exists no more is told, and so is a phase that came."""
    older = resolved()
    del older["checkpoint"]["keep_last"], older["model"]["logits_soft_cap"]
    assert compare(older, resolved()) == []
    older["train"]["sharpness"] = 3
    assert Change("train.sharpness", 3, None) in compare(older, resolved())
    phases = [*RECIPE["data"]["phases"], {"path": "phases/second", "peak_lr": 1e-4}]
    added = compare(resolved(), resolved(data={"phases": phases}))
    assert Change("data.phases.1.path", None, str(Path("phases/second"))) in added


def test_flatten() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": None}) == {"a.b.0": 1, "a.b.1.c": 2, "d": None}
