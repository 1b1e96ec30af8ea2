"""Logits and gradients of the network against transformers' own Qwen3 and Gemma 3, with the same weights.

Errors are relative: the norm of the difference of a whole tensor over the norm of transformers' tensor in FP32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.export import export_model
from megatron_kaiyuan.model import names
from megatron_kaiyuan.network import EMBEDDING, GATE_AND_UP, QKV
from megatron_kaiyuan.platform.precisions import DTYPES
from tests.helpers.references.network import SHAPE, numbered, random_weights

KINDS: dict[str, dict[str, Any]] = {
    "Gemma3ForCausalLM": {},
    "Qwen3ForCausalLM": {"sandwich_norm": False, "logits_soft_cap": None},
}
# FP32 within rounding; half precision within so many units of its rounding, 2^-11 and 2^-8. Measured with two seeds:
# logits 4.0; gradients 12.9 against Gemma 3, 28.7 against Qwen3, whose sub-layers no norm closes.
FP32_BOUND, LOGITS_BOUND, GRADIENTS_BOUND = 1e-5, 8, 48
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
LOSS_SCALE = 1024.0
Tensors = dict[str, torch.Tensor]


def token_ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 97), generator=torch.Generator().manual_seed(3))


def mean_loss(logits_bsv: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_bsv.float().flatten(0, 1), token_ids().roll(-1, 1).flatten())


def ours(model: ModelConfig, weights: Tensors, precision: str) -> tuple[torch.Tensor, Tensors]:
    """Logits [b, s, v] and gradients by megatron-core's names; the loss is megatron-core's own, from the labels."""
    from megatron_kaiyuan.model.build import build_model, transformer_config

    network = build_model(model, transformer_config(model, ParallelConfig(), precision))
    missing = network.load_state_dict(numbered(weights), strict=False)
    assert missing.unexpected_keys == [] and all(name.endswith("_extra_state") for name in missing.missing_keys)
    ids_bs = token_ids()
    inputs = ids_bs, torch.arange(ids_bs.shape[1]).expand(2, -1), None
    (LOSS_SCALE * network(*inputs, labels=ids_bs.roll(-1, 1)).float().mean()).backward()
    gradients = {name: parameter.grad.float() / LOSS_SCALE for name, parameter in network.named_parameters()}
    with torch.no_grad():
        return network(*inputs).float(), gradients


def theirs(folder: Path, kind: str) -> tuple[torch.Tensor, Tensors]:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert type(network).__name__ == kind
    logits_bsv = network(token_ids()).logits
    mean_loss(logits_bsv).backward()
    return logits_bsv.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


def by_their_names(gradients: Tensors, model: ModelConfig) -> Tensors:
    """The same function of other variables: gains less one, and an embedding that was divided by sqrt(hidden)."""
    inside, outside = names.renamed_in_layer(model), names.renamed_outside(model)
    plain = names.split_layers(gradients, model.num_layers)
    found = {outside[name]: gradient for name, gradient in plain.outer.items()}
    if model.sandwich_norm:
        found[outside[EMBEDDING]] *= model.hidden_size**0.5
    for index, layer in enumerate(plain.layers):
        parts = names.split_qkv(layer.pop(QKV), model)
        parts |= names.split_gate_and_up(layer.pop(GATE_AND_UP))
        parts |= {inside[name]: gradient for name, gradient in layer.items()}
        found |= {f"model.layers.{index}.{name}": gradient for name, gradient in parts.items()}
    return found


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape and expected.norm() > 0
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_theirs(kind: str, precision: str, tmp_path: Path) -> None:
    model = ModelConfig(**{**SHAPE, **KINDS[kind]})
    # Both start from weights that the precision holds exactly.
    weights = {name: tensor.to(DTYPES[precision]).float() for name, tensor in random_weights(model, seed=1).items()}
    expected_logits, expected = theirs(export_model(weights, model, tmp_path / "model", None), kind)
    logits, gradients = ours(model, weights, precision)
    found = by_their_names(gradients, model)
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.__getitem__)
    of_logits = relative_error(logits, expected_logits)
    print(f"{kind} {precision}: logits {of_logits:.2e}, gradients {errors[worst]:.2e} ({worst})")
    rounding = ROUNDING.get(precision)
    assert of_logits <= (LOGITS_BOUND * rounding if rounding else FP32_BOUND)
    assert errors[worst] <= (GRADIENTS_BOUND * rounding if rounding else FP32_BOUND)
