"""What a capsule must hold before a part of a network is built and run with it.

A network is built as its manifest says, so that a size out of a damaged manifest would be asked of the memory: sizes
are compared with the weights first, which are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.forms import FileEntry, Form

_REMEDY = "copy the capsule again, or let the run write one again with this version"
_INTEGERS = (torch.int64, torch.int32)


class _Seen(Form):
    model_config = ConfigDict(extra="forbid")
    part: Literal["embedding", "layer", "head"]
    layer: Annotated[int | None, Field(ge=1, lt=1 << 31)]
    tensor: str
    module: str
    direction: Literal["forward", "backward"]


class CapsuleForm(Form):
    """`capsule.json`."""

    message: str
    seen: _Seen
    precision: Literal["fp32", "bf16", "fp16"]
    model: dict[str, Any]
    z_loss: Annotated[float, Field(ge=0)]
    tensors: FileEntry


def require_capsule(path: Path, manifest: CapsuleForm, model: ModelConfig, tensors: Any) -> None:
    """Compare the tensors of a capsule with its manifest.

    Args:
        path: of the tensors.

    Raises:
        UserError: a tensor is missing, or of another shape or type than the part of the network needs.
    """
    if (why := _wrong(manifest.seen, model, tensors)) is not None:
        raise UserError(f"{path}: {why}; {_REMEDY}")


def _wrong(seen: _Seen, model: ModelConfig, tensors: Any) -> str | None:
    if (seen.part == "layer") != (seen.layer is not None) or (seen.layer or 0) > model.num_layers:
        return f"it says to be of the {seen.part}, layer {seen.layer}, of {model.num_layers}"
    groups = ("inputs", "weights", "random")
    if not isinstance(tensors, dict) or not all(isinstance(tensors.get(group), dict) for group in groups):
        return "it does not hold inputs, weights and random states"
    for group in groups:
        for name, tensor in tensors[group].items():
            if not isinstance(name, str) or not _is_plain(tensor):
                return f"{group}: {name} is not a plain tensor"
    state = tensors["random"].get("host")
    if state is None or state.dtype != torch.uint8 or state.shape != torch.get_rng_state().shape:
        return "it holds no state of the random numbers"
    return _wrong_weights(seen, model, tensors["weights"]) or _wrong_inputs(seen, model, tensors["inputs"])


def _is_plain(tensor: Any) -> bool:
    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized


def _wrong_weights(seen: _Seen, model: ModelConfig, weights: dict[str, torch.Tensor]) -> str | None:
    """Sizes that decide how much memory the part takes; all others are compared when it is built."""
    heads, hidden, size = model.num_attention_heads, model.hidden_size, model.kv_channels
    expected = {
        "embedding": {"word_embeddings.weight": (model.padded_vocab_size, hidden)},
        "head": {"output_layer.weight": (model.padded_vocab_size, hidden)},
        "layer": {
            "self_attention.linear_qkv.weight": ((heads + 2 * model.num_query_groups) * size, hidden),
            "self_attention.linear_proj.weight": (hidden, heads * size),
            "mlp.linear_fc1.weight": (2 * model.ffn_hidden_size, hidden),
        },
    }[seen.part]
    for name, shape in expected.items():
        if name not in weights or tuple(weights[name].shape) != shape:
            return f"its weights are not those of its model: {name} is not {list(shape)}"
    if odd := [name for name, weight in weights.items() if not weight.dtype.is_floating_point]:
        return f"weight {odd[0]} is not of floating-point numbers"
    return None


def _wrong_inputs(seen: _Seen, model: ModelConfig, inputs: dict[str, torch.Tensor]) -> str | None:
    ids = {"embedding": "tokens", "layer": None, "head": "labels"}[seen.part]
    if seen.part == "embedding":
        shape = tuple(inputs["tokens"].shape) if "tokens" in inputs else ()
    else:
        hidden = inputs.get("hidden")
        if hidden is None or hidden.ndim != 3 or hidden.shape[2] != model.hidden_size or not _is_float(hidden):
            return "inputs: hidden is not [s, b, h]"
        shape = (hidden.shape[1], hidden.shape[0])
    if len(shape) != 2 or min(shape) < 1 or shape[1] > model.max_position_embeddings:
        return f"inputs: of shape {list(shape)}, where [b, s] is wanted"
    known = {"embedding": ("tokens", "position_ids"), "layer": ("hidden", "documents"), "head": ("hidden", "labels")}
    if odd := [name for name in inputs if name not in (*known[seen.part], "output_gradient")]:
        return f"inputs: {odd[0]} is none of the {seen.part}"
    for name in (ids, *(name for name in ("position_ids", "documents") if name in inputs)):
        if name is not None and not _is_ids(inputs.get(name), shape, model.padded_vocab_size if name == ids else None):
            return f"inputs: {name} is not [b, s], or has numbers that it cannot have"
    if seen.direction == "backward":
        gradient = inputs.get("output_gradient")
        wanted = shape if seen.part == "head" else (shape[1], shape[0], model.hidden_size)
        if gradient is None or tuple(gradient.shape) != wanted or not _is_float(gradient):
            return f"inputs: output_gradient is not {list(wanted)}"
    return None


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _is_ids(tensor: torch.Tensor | None, shape: tuple[int, ...], below: int | None) -> bool:
    if tensor is None or tensor.dtype not in _INTEGERS or tuple(tensor.shape) != shape or int(tensor.min()) < 0:
        return False
    return below is None or int(tensor.max()) < below
