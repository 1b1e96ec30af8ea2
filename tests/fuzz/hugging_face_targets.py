"""Hugging Face folders: to start a run from, and to evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate
from tests.helpers.references.network import SHAPE, random_weights


def _qwen3(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            vocab_size=384,
            hidden_size=SHAPE["hidden_size"],
            intermediate_size=SHAPE["ffn_hidden_size"],
            num_hidden_layers=SHAPE["num_layers"],
            num_attention_heads=SHAPE["num_attention_heads"],
            num_key_value_heads=SHAPE["num_query_groups"],
            head_dim=SHAPE["kv_channels"],
            max_position_embeddings=SHAPE["max_position_embeddings"],
            tie_word_embeddings=False,
        )
        torch.manual_seed(1)
        Qwen3ForCausalLM(config).save_pretrained(folder / "model")
        if name.endswith("index.json"):
            weights = folder / "model" / "model.safetensors"
            from safetensors import safe_open

            with safe_open(weights, framework="pt") as file:
                listed = {key: weights.name for key in file.keys()}  # noqa: SIM118
            (folder / "model" / name).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
        return folder / "model" / name

    return make


def _exported(name: str) -> Callable[[Path], Path]:
    """A folder that export wrote, with remainders: its gains are far from one."""

    def make(folder: Path) -> Path:
        from megatron_kaiyuan.config import ModelConfig
        from megatron_kaiyuan.export import export_model

        model = ModelConfig(**SHAPE)
        weights = {key: tensor * 0.01 for key, tensor in random_weights(model, seed=1).items()}
        return export_model(weights, model, folder / "model", None) / name

    return make


def _import(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.huggingface import HuggingFaceFolder

    folder = HuggingFaceFolder(path.parent)
    model = folder.model()
    # Sums are not compared here: a stranger's are right.
    gain = folder.megatron_weight("decoder.layers.0.mlp.post_norm.weight", model)
    assert gain is not None and gain.shape == (model.hidden_size,)


def _scores(run_dir: Path) -> Path:
    measured = {"name": f"{run_dir}, step 3", "held_out": {"nats_per_token": 2.5}, "tasks": {"arc_easy": {"acc": 0.25}}}
    (run_dir / "evaluation.json").write_text(json.dumps({"model": measured, "others": []}))
    return run_dir / "evaluation.json"


def _write_card(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.find import Found
    from megatron_kaiyuan.config import ModelConfig
    from megatron_kaiyuan.export.card import model_card

    found = Found(path.parent / "step_3", path.parent, "step 3")
    model_card(found, ModelConfig(**SHAPE), {"config": {}}, {"step": 3}, ("kaiyuan", "float32"))


def _start(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.huggingface import HuggingFaceFolder
    from megatron_kaiyuan.config import ModelConfig

    model = ModelConfig(**SHAPE)
    folder = HuggingFaceFolder(path.parent)
    folder.compare(model)
    for name in ("decoder.layers.0.self_attention.linear_qkv.weight", "output_layer.weight"):
        folder.megatron_weight(name, model)


def _evaluate(path: Path) -> Any:
    from megatron_kaiyuan.export.loading import load_network

    load_network(path.parent)


TARGETS = (
    Target("hf-config", _qwen3("config.json"), json_damage.plain, [_start]),
    Target("hf-index", _qwen3("model.safetensors.index.json"), json_damage.plain, [_start]),
    Target("hf-weights", _qwen3("model.safetensors"), mutate, [_start]),
    Target("hf-manifest", _exported("manifest.json"), json_damage.sealed, [_import]),
    Target("hf-remainders", _exported("remainders.kaiyuan"), mutate, [_import]),
    Target("hf-card", _scores, json_damage.plain, [_write_card]),
    Target("hf-model", _qwen3("config.json"), json_damage.plain, [_evaluate]),
)
