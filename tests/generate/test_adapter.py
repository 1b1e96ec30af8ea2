from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.export.in_memory import network_of
from megatron_kaiyuan.generate.adapter import LogitsModel
from tests.helpers.references.network import SHAPE, random_weights, reference_logits


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "top_k": 20, "temperature": 0.9}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "drawn", "several"],
)
def test_a_function_generates_what_the_network_with_a_cache_does(options: dict[str, Any]) -> None:
    model = ModelConfig(**SHAPE)
    weights = random_weights(model, seed=1)
    network = network_of(weights, model)
    adapted = LogitsModel(lambda ids_bs: reference_logits(weights, model, ids_bs), torch.device("cpu"))
    ids_bs = torch.randint(1, 300, (2, 20), generator=torch.Generator().manual_seed(2))
    # The second prompt is shorter, and padded at its start.
    mask_bs = torch.ones_like(ids_bs)
    mask_bs[1, :7] = 0
    for mask in (None, mask_bs):
        found = []
        for one in (network, adapted):
            torch.manual_seed(1)
            found.append(one.generate(ids_bs, attention_mask=mask, max_new_tokens=9, pad_token_id=0, **options))
        assert torch.equal(*found), mask
