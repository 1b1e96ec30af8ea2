"""A whole restore: what a checkpoint's common part says of the optimizer, the monitors and the random generators."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.fuzz import json_damage
from tests.fuzz.capsule_targets import one_process
from tests.fuzz.checkpoint_targets import _seal
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate

_SHAPE = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1, "num_query_groups": 1}
_RECIPE = {
    "run_dir": "unused",
    "platform": "cpu",
    "model": {**_SHAPE, "kv_channels": 8, "vocab_size": 16, "max_position_embeddings": 8},
    "data": {"phases": [{"path": "unused", "peak_lr": 1e-3}]},
    "train": {"seq_length": 8, "micro_batch_size": 1, "global_batch_size": 1, "precision": "fp16"},
}
_STATE: list[Any] = []


@contextlib.contextmanager
def _state() -> Iterator[None]:
    """The state that is written and restored, with a loss scaler and a monitor that remembers something."""
    with one_process():
        from megatron_kaiyuan import platform
        from megatron_kaiyuan.config import RunConfig, parse
        from megatron_kaiyuan.train.bad_steps import BadSteps
        from megatron_kaiyuan.train.start import build_state

        run = parse(RunConfig, _RECIPE, "fuzz")
        state = build_state(run, platform.current())
        state.monitors["bad_steps"] = BadSteps(run.faults, min_loss_scale=1.0)
        _STATE[:] = [run, state]
        yield


def _make(folder: Path) -> Path:
    from megatron_kaiyuan.checkpoint.save import save_folder

    run, state = _STATE
    # Adam's moments are there before the first step too.
    state.sharded(is_loading=True)
    step = folder / "checkpoints" / "step_1"
    identity = {"config": run.model_dump(mode="json"), "phases": [], "tokenizer": None, "versions": {}, "world_size": 1}
    save_folder(step, {**state.sharded(), "run": identity}, step=1, tokens=64, scheduled=True)
    return step / "common.pt"


def _damaged(raw: bytes, seed: int) -> bytes:
    """What a restore takes from the common part: other values, no tensors, or tensors of another kind."""
    generator = random.Random(seed)
    if generator.random() < 0.1:
        return mutate(raw, seed)
    content = torch.load(io.BytesIO(raw), weights_only=True)
    name = generator.choice([name for name in content if name != "run"])
    content[name] = json_damage.damaged(content[name], generator)
    if generator.random() < 0.2 and name == "random" and content[name]:
        other = (torch.ones(3), torch.zeros(5056, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8), b"a")
        content[name] = [{"host": generator.choice(other), "device": generator.choice(other), "platform": "cpu"}]
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _restore(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.common_form import ResumableForm
    from megatron_kaiyuan.checkpoint.load import load_common
    from megatron_kaiyuan.train.resume import restore_step

    load_common(path.parent, ResumableForm)
    restore_step(_STATE[1], path.parent)


TARGETS = (Target("checkpoint-restore", _make, _damaged, [_restore], _seal, _state),)
