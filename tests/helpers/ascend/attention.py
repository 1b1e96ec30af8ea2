"""torch_npu's fused attention, which chips from the 910B on have, with its gradient; all inside is FP32."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.ascend.gradients import gradients

# "Left-up causal": the mask that is handed in is a block of it, whatever the length.
_CAUSAL = 2
_NOT_COMPUTED = ("pse", "padding_mask", "prefix", "actual_seq_qlen", "actual_seq_kvlen", "sink")


def fusion_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
    """Of `[batch, heads, tokens, head size]`; the statistics of the softmax are left out."""
    options = _by_name("npu_fusion_attention_v3", args, kwargs)
    query = options["query"]
    output = _attention(query.float(), options["key"].float(), options["value"].float(), options["scale"], options)
    return (output.to(query.dtype), *[None] * 5)


def fusion_attention_backward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
    """Gradients of query, key and value, recomputed without the statistics."""
    options = _by_name("npu_fusion_attention_grad_v3", args, kwargs)
    inputs = [options[name] for name in ("query", "key", "value")]
    found = gradients(
        lambda query, key, value: _attention(query, key, value, options["scale_value"], options), inputs, options["dy"]
    )
    return (*found, None, None)


def _by_name(operator: str, args: Any, kwargs: Any) -> dict[str, Any]:
    arguments = getattr(torch.ops.npu, operator).default._schema.arguments
    return {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, options: dict[str, Any]
) -> torch.Tensor:
    asked = [name for name in _NOT_COMPUTED if options.get(name) is not None]
    if options["input_layout"] != "BNSD" or options.get("keep_prob", 1.0) != 1.0 or asked:
        # Training asks for none of these; a result without them would be wrong without a word.
        raise ValueError(f"npu_fusion_attention: training must not ask for {options}")
    mask = options.get("atten_mask")
    if options.get("sparse_mode", 0) == _CAUSAL:
        mask = torch.ones(query.size(2), key.size(2), dtype=torch.bool).triu(1)
    visible = None if mask is None else ~mask.bool()
    grouped = query.size(1) != key.size(1)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, visible, scale=scale, enable_gqa=grouped)
