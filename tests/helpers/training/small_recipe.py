"""A recipe for planning: nothing that it names has to be there."""

from __future__ import annotations

from typing import Any

from megatron_kaiyuan.config import RunConfig, parse

KAIYUAN_2B = "launch/recipes/kaiyuan-2b/train.yaml"


def small_run(**sections: dict[str, Any]) -> RunConfig:
    """Four layers with grouped heads, 16 samples of 64 tokens a step; sections override single fields."""
    recipe: dict[str, Any] = {
        "run_dir": "unused",
        "platform": "cpu",
        "model": {
            "preset": "kaiyuan-tiny",
            "hidden_size": 80,
            "ffn_hidden_size": 120,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "kv_channels": 18,
            "vocab_size": 1000,
        },
        "parallel": {},
        "data": {"phases": [{"path": "unused", "peak_lr": 1e-3}]},
        "train": {"seq_length": 64, "micro_batch_size": 1, "global_batch_size": 16},
    }
    for name, values in sections.items():
        recipe[name] = {**recipe[name], **values}
    return parse(RunConfig, recipe, "test")
