"""The network's parts against their definitions, and its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.backend.attention import document_mask
from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from tests.helpers.training.small_network import build, forward, tiny


def test_kaiyuan_2b_has_2_032_billion_parameters() -> None:
    """Counted on the network that megatron-core builds, without memory for it."""
    model = ModelConfig(preset="kaiyuan-2b")  # type: ignore[call-arg]
    with torch.device("meta"):
        network = build(model)
    total = sum(parameter.numel() for parameter in network.parameters())
    embeddings = sum(parameter.numel() for name, parameter in network.named_parameters() if "embed" in name)
    head = sum(parameter.numel() for name, parameter in network.named_parameters() if "output_layer" in name)
    assert embeddings == head == 151936 * 2048
    assert round(total / 1e9, 3) == 2.032
    assert round((total - embeddings - head) / 1e9, 2) == 1.41


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (4, 1)])
def test_attention_is_causal_softmax_attention(heads: int, groups: int) -> None:
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_kaiyuan.model.attention import CausalAttention
    from megatron_kaiyuan.model.build import transformer_config

    config = transformer_config(tiny(), ParallelConfig())
    attention = CausalAttention(config, 1, AttnMaskType.causal, "self")
    length, batch, size = 17, 2, 8
    torch.manual_seed(0)
    query = torch.randn(length, batch, heads, size, dtype=torch.float64)
    key, value = torch.randn(2, length, batch, groups, size, dtype=torch.float64)
    found = attention(query, key, value)
    keys, values = (part.repeat_interleave(heads // groups, dim=2) for part in (key, value))
    scores = torch.einsum("sbnd,tbnd->bnst", query, keys) / size**0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    expected = torch.einsum("bnst,tbnd->sbnd", scores.softmax(-1), values).reshape(length, batch, -1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2)])
@pytest.mark.parametrize("mask", [document_mask, lambda documents_bs: documents_bs], ids=["megatron's", "numbers"])
def test_attention_under_a_document_mask_is_attention_within_each_document(
    mask: Callable[[torch.Tensor], torch.Tensor], heads: int, groups: int
) -> None:
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_kaiyuan.model.attention import CausalAttention
    from megatron_kaiyuan.model.build import transformer_config

    attention = CausalAttention(transformer_config(tiny(), ParallelConfig()), 1, AttnMaskType.causal, "self")
    lengths = [[5, 1, 11], [17]]
    documents_bs = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])
    torch.manual_seed(0)
    query = torch.randn(17, 2, heads, 8, dtype=torch.float64)
    key, value = torch.randn(2, 17, 2, groups, 8, dtype=torch.float64)
    found = attention(query, key, value, mask(documents_bs))
    for sample, row in enumerate(lengths):
        parts = [part[:, sample : sample + 1].split(row) for part in (query, key, value)]
        expected = torch.cat([attention(*document) for document in zip(*parts, strict=True)])
        torch.testing.assert_close(found[:, sample : sample + 1], expected)


def test_soft_cap_bounds_logits_and_its_gradient_is_right() -> None:
    from megatron_kaiyuan.model.loss import soft_cap

    logits = torch.tensor([-1e4, -5.0, 0.0, 1e-3, 60000.0], dtype=torch.float16)
    capped = soft_cap(logits, 30.0)
    assert capped.dtype == torch.float32
    assert capped.abs().max() <= 30.0
    torch.testing.assert_close(capped[3].item(), logits[3].item(), rtol=1e-5, atol=0)
    points = torch.linspace(-90, 90, 13, dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_cap(points, 30.0).sum(), points)
    exact = 1 / torch.cosh(points.detach().double() / 30) ** 2
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-6)


def test_capped_model_is_the_uncapped_one_with_its_logits_capped() -> None:
    capped, plain = tiny(logits_soft_cap=2.0), tiny(logits_soft_cap=None)
    network, reference = build(capped), build(plain)
    reference.load_state_dict(network.state_dict())
    # Larger logits than a fresh network's, so that the cap acts.
    for model in (network, reference):
        model.output_layer.weight.data.mul_(50)
    logits = forward(reference, plain)
    assert logits.abs().max() > 4
    torch.testing.assert_close(forward(network, capped), 2.0 * torch.tanh(logits / 2.0))


def test_loss_with_a_cap_has_the_gradient_of_its_definition() -> None:
    """The loss caps block by block; without labels a hook of the network caps all logits."""
    model = tiny(logits_soft_cap=2.0, num_layers=1)
    network = build(model)
    network.output_layer.weight.data.mul_(50)
    ids_bs = torch.randint(model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    positions_bs = torch.arange(16).expand(2, -1)
    network(ids_bs, positions_bs, None, labels=ids_bs.roll(-1, 1)).mean().backward()
    found = network.output_layer.weight.grad.clone()
    network.zero_grad()
    logits_bsv = network(ids_bs, positions_bs, None)
    torch.nn.functional.cross_entropy(logits_bsv.flatten(0, 1), ids_bs.roll(-1, 1).flatten()).backward()
    torch.testing.assert_close(found, network.output_layer.weight.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("sandwich", [True, False])
def test_sandwich_norm_bounds_what_a_sub_layer_adds(sandwich: bool) -> None:
    """However large the weights, attention and MLP add what the gain says; without the norm they explode."""
    model = tiny(sandwich_norm=sandwich, post_norm_initial_gain=0.25)
    network = build(model)
    added = []
    for layer in network.decoder.layers:
        for sub_layer, last in (
            (layer.self_attention, layer.self_attention.linear_proj),
            (layer.mlp, layer.mlp.linear_fc2),
        ):
            last.weight.data.mul_(1000)
            sub_layer.register_forward_hook(lambda module, inputs, output: added.append(output[0].pow(2).mean().sqrt()))
    forward(network, model)
    assert len(added) == 2 * model.num_layers
    if sandwich:
        torch.testing.assert_close(torch.stack(added), torch.full((len(added),), 0.25), rtol=1e-3, atol=1e-3)
    else:
        assert max(added) > 10


def test_weights_do_not_depend_on_the_platform_generator_state() -> None:
    first, second = build(tiny()), build(tiny())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_stock_megatron_users_can_take_the_spec() -> None:
    """`--spec megatron_kaiyuan.model.spec kaiyuan_layer_spec`, the way megatron-lm's own scripts resolve it."""
    from megatron.core.transformer.spec_utils import import_module

    spec = import_module(("megatron_kaiyuan.model.spec", "kaiyuan_layer_spec"))
    assert spec().module.__name__ == "SandwichLayer"
    assert spec(tiny(sandwich_norm=False)).module.__name__ == "TransformerLayer"
    assert platform.current().name == "cpu"


@pytest.mark.parametrize("changes", [{}, {"rotary_interleaved": True}, {"no_rope_freq": [0, 1, 0, 1]}], ids=str)
def test_rotation_is_megatrons_whatever_its_form(changes: dict[str, Any]) -> None:
    """Of the same network with stock self-attention; the forms that ours does not have are left to it."""
    from megatron.core.transformer.attention import SelfAttention

    model = tiny(num_layers=4)
    network = build(model)
    for name, value in changes.items():
        setattr(network.config, name, value)
    found = forward(network, model)
    for layer in network.decoder.layers:
        layer.self_attention.__class__ = SelfAttention
    torch.testing.assert_close(found, forward(network, model))
