"""What the hooks measure against the network's definitions, tensor by tensor and layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.monitor.tensors import ATTENTION_LOGITS, activation_places
from tests.helpers.references.activations import reference_activations
from tests.helpers.references.network import SHAPE, numbered, random_weights


def build(model: ModelConfig, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    from megatron_kaiyuan.model.build import build_model, transformer_config

    network = build_model(model, transformer_config(model, ParallelConfig()))
    network.load_state_dict(numbered(weights), strict=False)
    return network


def loss(network: torch.nn.Module, ids_bs: torch.Tensor) -> torch.Tensor:
    positions_bs = torch.arange(ids_bs.shape[1]).expand(len(ids_bs), -1)
    return network(ids_bs, positions_bs, None, labels=ids_bs.roll(-1, 1)).mean()


@pytest.mark.parametrize(
    "changes", [{}, {"sandwich_norm": False, "logits_soft_cap": None, "num_query_groups": 4}], ids=["kaiyuan", "plain"]
)
@pytest.mark.usefixtures("one_process")
def test_every_tensor_is_that_of_the_definition(changes: dict[str, Any]) -> None:
    from megatron_kaiyuan.monitor.activations import watch_activations
    from megatron_kaiyuan.monitor.table import Table

    model = ModelConfig(**{**SHAPE, **changes})
    weights = random_weights(model, seed=1)
    ids_bs = torch.randint(0, 256, (3, 97), generator=torch.Generator().manual_seed(3))
    network = build(model, weights)
    table = Table(activation_places(model), torch.device("cpu"))
    handles = watch_activations(network, model, table)
    # Two micro-batches, of which the second is measured with what the first left.
    loss(network, ids_bs[:2])
    loss(network, ids_bs[2:].expand(2, -1))
    found = table.gather()
    first = reference_activations(weights, model, ids_bs[:2])
    second = reference_activations(weights, model, ids_bs[2:])

    assert found is not None and found.keys() == first.keys() == activation_places(model).keys()
    for name, cells in found.items():
        assert len(cells) == len(first[name])
        for cell, *both in zip(cells, first[name], second[name], strict=True):
            count, mean, mean_square = cell.sums
            np.testing.assert_allclose(cell.peak, max(part.abs().max() for part in both), rtol=1e-4, err_msg=name)
            if name != ATTENTION_LOGITS:
                assert count == 2
                expected = np.mean([part.abs().mean() for part in both])
                np.testing.assert_allclose(mean / count, expected, rtol=1e-4, err_msg=name)
                expected = np.mean([part.square().mean() for part in both])
                np.testing.assert_allclose(mean_square / count, expected, rtol=1e-4, err_msg=name)
    for handle in handles:
        handle.remove()


@pytest.mark.usefixtures("one_process")
def test_watching_changes_no_bit_and_leaves_no_hook() -> None:
    from megatron_kaiyuan.monitor.activations import watch_activations
    from megatron_kaiyuan.monitor.table import Table

    model = ModelConfig(**SHAPE)
    ids_bs = torch.randint(0, 256, (2, 97), generator=torch.Generator().manual_seed(3))
    network = build(model, random_weights(model, seed=1))

    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())

    # The cap of the head, and the norms that close two sub-layers a layer, are hooks too, and stay.
    own = 1 + 2 * model.num_layers
    results, counts = [], [hooks()]
    for watched in (False, True):
        handles = (
            watch_activations(network, model, Table(activation_places(model), torch.device("cpu"))) if watched else []
        )
        counts.append(hooks())
        network.zero_grad()
        value = loss(network, ids_bs)
        value.backward()
        results.append([value, *(parameter.grad for parameter in network.parameters())])
        for handle in handles:
            handle.remove()
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert counts == [own, own, len(handles) + own] and len(handles) > 20 and hooks() == own
