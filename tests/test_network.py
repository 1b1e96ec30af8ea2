"""The page that lists the weights against the network that Megatron Core builds."""

from __future__ import annotations

import collections
import subprocess
import sys

import pytest

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.network import (
    LAYERS,
    Weight,
    count_parameters,
    embedding_weights,
    head_weights,
    kind_of,
    layer_weights,
    places,
)

SIZES = {"num_layers": 2, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 4, "num_query_groups": 2}
SHAPE = {**SIZES, "kv_channels": 10, "vocab_size": 100, "max_position_embeddings": 32}
VARIANTS = [
    {},
    {"sandwich_norm": False, "logits_soft_cap": None},
    {"qk_layernorm": False},
    {"embedding_norm": True},
    {"sandwich_norm": False, "qk_layernorm": False, "embedding_norm": True},
]


def listed(model: ModelConfig) -> list[tuple[str, Weight]]:
    """By whole name, in order."""
    layers = [
        (f"{LAYERS}{number}.{weight.name}", weight)
        for number in range(model.num_layers)
        for weight in layer_weights(model)
    ]
    outer = [[(weight.name, weight) for weight in weights(model)] for weights in (embedding_weights, head_weights)]
    return [*outer[0], *layers, *outer[1]]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_it_is_the_network_that_is_built(changes: dict) -> None:
    model = ModelConfig(**SHAPE, **changes)
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.model.build import build_model, transformer_config

    with single_process(device):
        built = dict(build_model(model, transformer_config(model, ParallelConfig())).named_parameters())
    wanted = listed(model)
    assert [name for name, _ in wanted] == list(built)
    assert [weight.shape for _, weight in wanted] == [tuple(tensor.shape) for tensor in built.values()]
    cut = {name: getattr(tensor, "partition_dim", -1) for name, tensor in built.items()}
    parallel = {name for name, tensor in built.items() if getattr(tensor, "tensor_model_parallel", False)}
    # Where nothing is cut Megatron Core still marks what would be.
    assert {name for name, weight in wanted if weight.cut_axis is not None} >= parallel
    assert all(cut[name] == weight.cut_axis for name, weight in wanted if name in parallel)
    assert count_parameters(model) == sum(tensor.numel() for tensor in built.values())
    found: collections.Counter[str] = collections.Counter(kind_of(name, model) for name in built)
    assert {kind: found[kind] for kind in places(model) if kind != "norms"} == {
        kind: count for kind, count in places(model).items() if kind != "norms"
    }


def test_an_unknown_weight_is_an_error() -> None:
    """Never silently one of the norms."""
    model = ModelConfig(**SHAPE)
    for name in ("decoder.layers.0.mlp.router.weight", "decoder.layers.mlp.router.weight", "embedding.norm.weight"):
        with pytest.raises(KeyError):
            kind_of(name, model)


def test_it_needs_no_torch() -> None:
    code = "import sys, megatron_kaiyuan.network; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
