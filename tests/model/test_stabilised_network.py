"""Norm behind the embedding, FP32 residual stream and FP32 head against their definitions."""

from __future__ import annotations

import pytest
import torch
from test_model import build, forward, tiny


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
