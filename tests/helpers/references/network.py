"""The Kaiyuan network from its definitions, on megatron-core's tensor names. Plain PyTorch, no library of models.

Shapes: B batch, S sequence, H hidden, N heads, G query groups, D head size, V padded vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_kaiyuan.config import ModelConfig

# Small, and no two of its sizes are equal by chance.
SHAPE: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 64,
    "ffn_hidden_size": 112,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 24,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rotary_base": 5000,
    "layernorm_epsilon": 1e-5,
}


def random_weights(model: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Random tensors under the names that mcore gives, layers stacked; norm gains spread round 1."""
    generator = torch.Generator().manual_seed(seed)
    hidden, ffn, size = model.hidden_size, model.ffn_hidden_size, model.kv_channels
    heads, groups, layers = model.num_attention_heads, model.num_query_groups, model.num_layers

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    def gain(*shape: int) -> Tensor:
        return 1 + 0.4 * torch.randn(*shape, generator=generator)

    weights = {
        "embedding.word_embeddings.weight": matrix(model.padded_vocab_size, hidden),
        "decoder.layers.input_layernorm.weight": gain(layers, hidden),
        "decoder.layers.self_attention.linear_qkv.weight": matrix(layers, (heads + 2 * groups) * size, hidden),
        "decoder.layers.self_attention.q_layernorm.weight": gain(layers, size),
        "decoder.layers.self_attention.k_layernorm.weight": gain(layers, size),
        "decoder.layers.self_attention.linear_proj.weight": matrix(layers, hidden, heads * size),
        "decoder.layers.pre_mlp_layernorm.weight": gain(layers, hidden),
        "decoder.layers.mlp.linear_fc1.weight": matrix(layers, 2 * ffn, hidden),
        "decoder.layers.mlp.linear_fc2.weight": matrix(layers, hidden, ffn),
        "decoder.final_layernorm.weight": gain(hidden),
        # Large enough that the soft cap bends the logits.
        "output_layer.weight": 12 * matrix(model.padded_vocab_size, hidden),
    }
    if model.sandwich_norm:
        weights["decoder.layers.self_attention.post_norm.weight"] = gain(layers, hidden)
        weights["decoder.layers.mlp.post_norm.weight"] = gain(layers, hidden)
    return weights


def numbered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with the layer's number in the name."""
    result = {}
    for name, tensor in weights.items():
        if name.startswith("decoder.layers."):
            rest = name.removeprefix("decoder.layers.")
            result.update({f"decoder.layers.{index}.{rest}": layer for index, layer in enumerate(tensor)})
        else:
            result[name] = tensor
    return result


def reference_logits(weights: dict[str, Tensor], model: ModelConfig, token_ids_bs: Tensor) -> Tensor:
    """Logits [B, S, V] of the network x + post(F(pre(x))), with c * tanh(logits / c) at the end."""
    hidden_bsh = weights["embedding.word_embeddings.weight"][token_ids_bs]
    for index in range(model.num_layers):
        layer = {
            name.removeprefix("decoder.layers."): tensor[index]
            for name, tensor in weights.items()
            if name.startswith("decoder.layers.")
        }
        normed = rms_norm(hidden_bsh, layer["input_layernorm.weight"], model)
        hidden_bsh = hidden_bsh + post(attention(normed, layer, model), layer, "self_attention", model)
        normed = rms_norm(hidden_bsh, layer["pre_mlp_layernorm.weight"], model)
        hidden_bsh = hidden_bsh + post(swiglu(normed, layer), layer, "mlp", model)
    normed = rms_norm(hidden_bsh, weights["decoder.final_layernorm.weight"], model)
    logits_bsv = normed @ weights["output_layer.weight"].T
    cap = model.logits_soft_cap
    return logits_bsv if cap is None else cap * torch.tanh(logits_bsv / cap)


def rms_norm(values: Tensor, gain: Tensor, model: ModelConfig) -> Tensor:
    values = values.float()
    return values / torch.sqrt((values**2).mean(-1, keepdim=True) + model.layernorm_epsilon) * gain


def post(values: Tensor, layer: dict[str, Tensor], sub_layer: str, model: ModelConfig) -> Tensor:
    return rms_norm(values, layer[f"{sub_layer}.post_norm.weight"], model) if model.sandwich_norm else values


def swiglu(normed: Tensor, layer: dict[str, Tensor]) -> Tensor:
    both = normed @ layer["mlp.linear_fc1.weight"].T
    ffn = both.shape[-1] // 2
    gate, up = both[..., :ffn], both[..., ffn:]
    return (gate * torch.sigmoid(gate) * up) @ layer["mlp.linear_fc2.weight"].T


def attention(normed: Tensor, layer: dict[str, Tensor], model: ModelConfig) -> Tensor:
    """Each head by itself: slow, and hard to get wrong. Group g holds its query heads, then its key, then its value."""
    size, groups = model.kv_channels, model.num_query_groups
    per_group = model.num_attention_heads // groups
    rows = (normed @ layer["self_attention.linear_qkv.weight"].T).split(size, dim=-1)
    contexts = []
    for group in range(groups):
        *queries, key, value = rows[group * (per_group + 2) : (group + 1) * (per_group + 2)]
        key = rotate(rms_norm(key, layer["self_attention.k_layernorm.weight"], model), model)
        for query in queries:
            query = rotate(rms_norm(query, layer["self_attention.q_layernorm.weight"], model), model)
            contexts.append(causal_attention(query, key, value))
    return torch.cat(contexts, dim=-1) @ layer["self_attention.linear_proj.weight"].T


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ value


def rotate(values: Tensor, model: ModelConfig) -> Tensor:
    """RoPE with halves: component i turns with component i + D/2, by position * base^(-2i/D)."""
    half = model.kv_channels // 2
    frequencies = model.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(values.shape[1], dtype=torch.float64)[:, None] * frequencies
    cosine, sine = angles.cos().float(), angles.sin().float()
    first, second = values[..., :half], values[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
