"""Recipes: of a training run, of an order, of probes and of a mixture."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate

_TRAIN = {
    "run_dir": "runs/a",
    "model": {"preset": "kaiyuan-tiny", "num_layers": 2, "logits_soft_cap": None},
    "parallel": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "data": {"phases": [{"path": "phases/one", "peak_lr": 1e-3}, {"path": "phases/two", "peak_lr": 1e-4}]},
    "train": {"seq_length": 256, "micro_batch_size": 4, "global_batch_size": 16, "train_tokens": 65536},
    "optimizer": {"warmup_tokens": 4096},
    "checkpoint": {"keep_last": 2},
}
_ORDER = {
    "root": "corpora",
    "corpora": {"web": "web_text", "code": "code_text"},
    "phases": [
        {
            "name": "first",
            "order": "curriculum",
            "tokens": "2M",
            "datasets": [
                {"corpus": "web", "score": "s", "keep": "top 0.5", "share": 0.25, "missing_scores": "drop"},
                {"corpus": "code", "share": 0.75, "max_repeat": 3},
            ],
        },
        {"name": "second", "order": "shuffle", "pack": 64, "datasets": [{"corpus": "web", "repeat": 1.5}]},
    ],
}
_PROBES = {
    "recipe": "probe.yaml",
    "windows": [{"name": "w", "phases": ["a", "b", "c"], "dataset": "web", "quantile": 0.5}, "windows.json"],
    "held_out": {"web": "held/web", "code": "held/code"},
    "train_tokens": "2M",
    "protocols": ["small_lr", "tuned"],
    "main_run": {"recipe": "main.yaml", "tokens": 1000},
}
_MIX = {
    "recipe": "probe.yaml",
    "corpora": {"code": "corpora/code", "web": "corpora/web"},
    "held_out": {"code": "held/code", "web": "held/web"},
    "objective": {"code": 2, "web": 1},
    "runs": 24,
    "tokens": "2M",
    "target_tokens": "100B",
    "largest": {"code": 0.5},
}
_TEXTS = (
    "model.preset={}",
    "model: {preset: {}}",
    "[" * 10_000,
    "{a: " * 3_000,
    "a: &a [*a]",
    "a: &a {b: *a}",
    "- 1\n- 2",
    "7",
    "null",
    "",
    "? [1, 2]\n: 3",
    "1: 2",
    "a: !!python/object:os.system {}",
    "a: ${a}",
    "a: ${b}\nb: ${a}",
    "a: ${oc.env:NOTHING_OF_THAT_NAME}",
    "a: ${unknown:3}",
    "a: ${",
    "a: 1\na: 2",
    "a: 2026-99-99",
    "a: 0x",
    "a: 1__",
    "<<: 3",
    "a: !!int x",
    "a: !!binary x",
    "a: !!timestamp x",
    "%YAML 9.9\n---\na: 1",
    "---\na: 1\n---\nb: 2",
    "a: '\\ud800'",
    'a: "\\ud800"',
    'a: "\\0"',
)


def damage(raw: bytes, seed: int) -> bytes:
    """Values and keys, bytes, or a text out of a list of odd ones in place of all or in the middle."""
    generator = random.Random(seed)
    kind = generator.random()
    if kind < 0.1:
        return mutate(raw, seed)
    if kind < 0.15:
        return generator.choice(_TEXTS).encode()
    if kind < 0.2:
        lines = raw.splitlines()
        lines.insert(generator.randrange(len(lines)), generator.choice(_TEXTS).encode())
        return b"\n".join(lines)
    content = json_damage.damaged(yaml.safe_load(raw), generator)
    try:
        return yaml.safe_dump(content, allow_unicode=generator.random() < 0.5).encode()
    except UnicodeEncodeError:
        return yaml.safe_dump(content).encode()


def _make(content: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return make


def _train(path: Path) -> Any:
    from megatron_kaiyuan.config import load_run
    from megatron_kaiyuan.config.world import check_world_size
    from megatron_kaiyuan.errors import UserError

    run = load_run(path)
    try:
        check_world_size(run, 2)
    except UserError as error:  # it names the field, as the recipe may not be the only source
        raise UserError(f"{path}: {error}") from error


def _order(path: Path) -> Any:
    from data_tools.curriculum.recipe import load_order

    load_order(path)


def _probes(path: Path) -> Any:
    from megatron_kaiyuan.config import parse, read_yaml
    from megatron_kaiyuan.research.probes.request import ProbeConfig

    parse(ProbeConfig, read_yaml(path), source=str(path))


def _mix(path: Path) -> Any:
    from megatron_kaiyuan.research.mixture.recipe import load_mix

    load_mix(path)


TARGETS = (
    Target("recipe-train", _make(_TRAIN), damage, [_train]),
    Target("recipe-order", _make(_ORDER), damage, [_order]),
    Target("recipe-probes", _make(_PROBES), damage, [_probes]),
    Target("recipe-mix", _make(_MIX), damage, [_mix]),
)
