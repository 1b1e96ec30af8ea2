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
from tests.helpers.references.network import SHAPE


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
    Target("hf-model", _qwen3("config.json"), json_damage.plain, [_evaluate]),
)
