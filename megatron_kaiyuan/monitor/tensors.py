"""Which activations are watched, in the order of the forward pass; all but `OUTSIDE_LAYERS` exist in every layer.

    embedding                 what enters the first layer
    query, key                as they enter attention: after QK-norm and RoPE
    attention_logits          q k^T * scale, of which only the largest is known
    attention_output          of the last linear of attention, before the post-norm
    attention_post_norm       what attention adds to the residual stream (with model.sandwich_norm)
    residual_after_attention  the residual stream between attention and MLP
    mlp_activation            silu(gate) * up
    mlp_output                of the last linear of the MLP, before the post-norm
    mlp_post_norm             what the MLP adds to the residual stream (with model.sandwich_norm)
    residual                  the residual stream after the layer
    logits                    of the head, before the cap
    capped_logits             after it (with model.logits_soft_cap)

Logits include the padding of the vocabulary, as the head computes it.
"""

from __future__ import annotations

from megatron_kaiyuan.config import ModelConfig

ATTENTION_LOGITS = "attention_logits"
OUTSIDE_LAYERS = ("embedding", "logits", "capped_logits")


def activation_places(model: ModelConfig) -> dict[str, int]:
    """The watched tensors of a network, and in how many places each one is."""
    post_norm = ["post_norm"] if model.sandwich_norm else []
    in_layers = [
        *("query", "key", ATTENTION_LOGITS),
        *(f"attention_{name}" for name in ("output", *post_norm)),
        "residual_after_attention",
        *(f"mlp_{name}" for name in ("activation", "output", *post_norm)),
        "residual",
    ]
    last = ["logits"] if model.logits_soft_cap is None else ["logits", "capped_logits"]
    return {"embedding": 1, **dict.fromkeys(in_layers, model.num_layers), **dict.fromkeys(last, 1)}
