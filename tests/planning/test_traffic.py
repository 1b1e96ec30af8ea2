"""Bytes between the products, against what torch's operations read and write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_kaiyuan.backend.blocked import blocked_attention
from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.planning.traffic import traffic
from megatron_kaiyuan.platform.datasheets import DEVICES
from tests.helpers.training.small_recipe import small_run

VIEWS = (
    "view",
    "transpose",
    "slice",
    "select",
    "unflatten",
    "detach",
    "permute",
    "expand",
    "alias",
    "as_strided",
    "t.",
)


class Moved(TorchDispatchMode):
    """Sums what operations read and write of tensors that have at least so many elements; views move nothing."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.bytes = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(word in str(func) for word in VIEWS):
            for tensor in tree_leaves((args, kwargs, result)):
                # Of a mask nothing is counted: all heads share it.
                if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.elements and tensor.dtype != torch.bool:
                    self.bytes += tensor.numel() * tensor.element_size()
        return result


def test_blocked_attention_moves_its_scores() -> None:
    """Eight blocks of queries; scores are the largest tensors by far."""
    heads, groups, length, size = 4, 2, 1024, 16
    shapes = [(1, count, length, size) for count in (heads, groups, groups)]
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes)
    with Moved(heads * 128 * 128) as moved:
        blocked_attention(query, key, value, None, None).sum().backward()
    run = small_run(
        model={"num_attention_heads": heads, "num_query_groups": groups, "max_position_embeddings": length},
        train={"seq_length": length, "micro_batch_size": 1},
    )
    stage = PipelineStage(run, 1, 0)
    planned = (traffic(stage, DEVICES["910a"]) - traffic(stage, DEVICES["h100"])) / run.model.num_layers
    assert planned == pytest.approx(moved.bytes, rel=0.1)


def test_the_residual_stream_by_hand() -> None:
    """Two norms and two additions a layer, twelve tensors of the stream forward and backward each at least.

    Sequence parallelism shares them out, tensor parallelism alone does not.
    """

    def moved(**parallel: Any) -> float:
        run = small_run(model={"sandwich_norm": False}, parallel=parallel, train={"precision": "bf16"})
        return traffic(PipelineStage(run, 2, 0), DEVICES["h100"])

    run = small_run()
    stream = run.train.seq_length * run.model.hidden_size * 2 * run.model.num_layers
    whole, cut = moved(), moved(tensor_model_parallel_size=2)
    shared = moved(tensor_model_parallel_size=2, sequence_parallel=True)
    assert shared == pytest.approx(whole / 2)
    assert cut - shared == 22 * stream / 2
    with_norms = PipelineStage(small_run(model={"sandwich_norm": True}, train={"precision": "bf16"}), 1, 0)
    assert traffic(with_norms, DEVICES["h100"]) - whole == 10 * stream
