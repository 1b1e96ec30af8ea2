"""Norm behind the embedding, FP32 residual stream and FP32 head against their definitions."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.training.small_network import build, forward, tiny


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_first_layer_gets_the_normed_embedding(precision: str) -> None:
    model = tiny(embedding_norm=True)
    network, plain = build(model, precision), build(tiny(), precision)
    gain = network.embedding.norm.weight
    assert torch.equal(gain, torch.ones_like(gain)) and gain.dtype == network.output_layer.weight.dtype
    gain.data.uniform_(0.5, 2)
    # Nothing else is drawn otherwise, and off there is nothing.
    others = {name: weight for name, weight in network.state_dict().items() if name != "embedding.norm.weight"}
    assert others.keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, others[name]) for name, weight in plain.named_parameters())
    seen: list[torch.Tensor] = []
    for one in (network, plain):
        one.decoder.layers[0].register_forward_pre_hook(
            lambda module, inputs, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
        )
        forward(one, model)
    normed, embedding = seen[0].double(), seen[1].double()
    expected = embedding / (embedding.square().mean(-1, keepdim=True) + model.layernorm_epsilon).sqrt() * gain.double()
    torch.testing.assert_close(normed, expected, rtol=1e-6 if precision == "fp32" else 2**-10, atol=1e-6)


@pytest.mark.parametrize("sandwich", [True, False])
def test_the_residual_stream_is_an_fp32_sum_of_what_half_precision_sub_layers_add(sandwich: bool) -> None:
    model = tiny(fp32_residual=True, sandwich_norm=sandwich)
    network = build(model, "fp16")
    stream: list[torch.Tensor] = []
    added: list[torch.Tensor] = []
    network.embedding.register_forward_hook(lambda module, inputs, output: stream.append(output))
    for layer in network.decoder.layers:
        for norm in (layer.input_layernorm, layer.pre_mlp_layernorm):
            norm.register_forward_hook(lambda module, inputs, output: added.append(output))
        for sub_layer in (layer.self_attention, layer.mlp):
            sub_layer.register_forward_hook(lambda module, inputs, output: added.append(output[0]))
        layer.register_forward_hook(lambda module, inputs, output: stream.append(output[0]))
    forward(network, model)
    assert all(one.dtype == torch.float32 for one in stream) and all(one.dtype == torch.float16 for one in added)
    for before, after, index in zip(stream, stream[1:], range(model.num_layers), strict=False):
        normed, attention, _, mlp = added[4 * index : 4 * index + 4]
        assert torch.equal(after, (before + attention.float()) + mlp.float())
        exact = before.double() / (before.double().square().mean(-1, keepdim=True) + model.layernorm_epsilon).sqrt()
        torch.testing.assert_close(normed.double(), exact, rtol=2**-11, atol=1e-7)
    # More than FP16 holds.
    assert not torch.equal(stream[-1], stream[-1].half().float())


def test_in_fp32_the_residual_stream_was_fp32_already() -> None:
    model = tiny(fp32_residual=True, embedding_norm=True)
    network, plain = build(model), build(tiny(embedding_norm=True))
    assert torch.equal(forward(network, model), forward(plain, model))


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("fp32_residual", [False, True])
def test_the_head_is_an_fp32_product_of_half_precision_weights(cap: float | None, fp32_residual: bool) -> None:
    """Logits beyond FP16's range come out right, and gradients have the precision of the weights."""
    model = tiny(fp32_head=True, logits_soft_cap=cap, fp32_residual=fp32_residual)
    network = build(model, "fp16")
    if cap is None:
        network.output_layer.weight.data.mul_(200_000)
    streams: list[torch.Tensor] = []
    network.decoder.final_layernorm.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))
    logits = forward(network, model)
    stream = streams[0].double().transpose(0, 1)
    normed = stream / (stream.square().mean(-1, keepdim=True) + model.layernorm_epsilon).sqrt()
    weight = network.output_layer.weight
    expected = normed @ weight.double().T
    assert weight.dtype == torch.float16 and logits.dtype == torch.float32
    assert cap is not None or expected.abs().max() > 65504
    expected = expected if cap is None else cap * torch.tanh(expected / cap)
    assert ((logits - expected).norm() / expected.norm()).item() < 1e-6
    ids_bs = torch.randint(model.vocab_size, (2, 8), generator=torch.Generator().manual_seed(2))
    network(ids_bs, torch.arange(8).expand(2, -1), None, labels=ids_bs).mean().backward()
    assert all(weight.grad.dtype == torch.float16 for weight in network.parameters())


def test_in_fp32_the_head_was_fp32_already() -> None:
    model = tiny(fp32_head=True)
    assert torch.equal(forward(build(model), model), forward(build(tiny()), model))
