"""What left the range first, where an overflow is put at each tensor in turn, and that all tensors are seen."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.monitor.tensors import ATTENTION_LOGITS, OUTSIDE_LAYERS, activation_places
from tests.helpers.references.network import SHAPE

if TYPE_CHECKING:
    from megatron_kaiyuan.monitor.first_out_of_range import Seen

IDS_BS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(3))
PLAIN = {"sandwich_norm": False, "qk_layernorm": False, "logits_soft_cap": None}

# Each module, and the names of its output and of the gradient of its output: who makes it, who uses it.
MODULES = {
    "input_layernorm": ("attention_norm", "self_attention.linear_qkv"),
    "self_attention.linear_qkv": ("qkv", "self_attention"),
    "self_attention.q_layernorm": ("query_norm", "self_attention"),
    "self_attention.k_layernorm": ("key_norm", "self_attention"),
    "self_attention.core_attention": ("attention_context", "self_attention.linear_proj"),
    "self_attention.post_norm": ("attention_post_norm", "self_attn_bda"),
    "pre_mlp_layernorm": ("mlp_norm", "mlp.linear_fc1"),
    "mlp.linear_fc1": ("mlp_gate_and_up", "mlp"),
    "mlp.post_norm": ("mlp_post_norm", "mlp_bda"),
}


@functools.cache
def network_of(**changes: Any) -> tuple[ModelConfig, Any]:
    from megatron_kaiyuan.model.build import build_model, transformer_config

    model = ModelConfig(**{**SHAPE, **changes})
    torch.manual_seed(1)
    return model, build_model(model, transformer_config(model, ParallelConfig()))


def step(network: torch.nn.Module, micro_batches: int = 1) -> None:
    positions_bs = torch.arange(IDS_BS.shape[1]).expand(len(IDS_BS), -1)
    for _ in range(micro_batches):
        network(IDS_BS, positions_bs, None, labels=IDS_BS.roll(-1, 1)).mean().backward()


def watched(look: Callable[[Seen, int, torch.Tensor], None], micro_batches: int = 1, **changes: Any) -> None:
    """Run a step under a watch."""
    from megatron_kaiyuan.monitor.first_out_of_range import TensorWatch

    _, network = network_of(**changes)
    handles = TensorWatch(network, look).handles
    try:
        step(network, micro_batches)
    finally:
        for handle in handles:
            handle.remove()
        network.zero_grad()


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["kaiyuan", "plain"])
@pytest.mark.usefixtures("one_process")
def test_activations_are_those_of_the_monitor(changes: dict[str, Any]) -> None:
    """The same names and sizes in the same layers: monitor, warnings and forensics speak of the same tensors."""
    from megatron_kaiyuan.monitor.activations import watch_activations
    from megatron_kaiyuan.monitor.table import Table

    model, network = network_of(**changes)
    table = Table(activation_places(model), torch.device("cpu"))
    handles = watch_activations(network, model, table)
    peaks: dict[tuple[str, int], float] = {}

    def look(seen: Seen, micro_batch: int, tensor: torch.Tensor) -> None:
        if seen.direction == "forward":
            assert (seen.layer is None) == (seen.part != "layer")
            peaks[seen.tensor, (seen.layer or 1) - 1] = float(tensor.abs().amax())

    watched(look, **changes)
    for handle in handles:
        handle.remove()
    cells = table.gather()
    assert cells is not None
    # Never written down as tensors.
    del cells[ATTENTION_LOGITS]
    if (cap := model.logits_soft_cap) is not None:
        assert cells.pop("capped_logits")[0].peak == pytest.approx(cap * math.tanh(peaks["logits", 0] / cap))
    assert set(OUTSIDE_LAYERS) & set(cells)
    for name, row in cells.items():
        assert [peaks[name, place] for place in range(len(row))] == [cell.peak for cell in row]


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["kaiyuan", "plain"])
@pytest.mark.usefixtures("one_process")
def test_gradients_are_those_of_autograd(changes: dict[str, Any]) -> None:
    """Every weight's; and of tensors those that follow from them by the definition of a linear."""
    model, network = network_of(**changes)
    step(network)
    expected = {name: weight.grad.clone() for name, weight in network.named_parameters()}
    network.zero_grad()
    gradients: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}

    def look(seen: Seen, micro_batch: int, tensor: torch.Tensor) -> None:
        prefix = {"embedding": "embedding.", "layer": f"decoder.layers.{(seen.layer or 0) - 1}.", "head": ""}[seen.part]
        name = "decoder." + seen.tensor if seen.tensor == "final_layernorm.weight" else prefix + seen.tensor
        found = gradients if seen.direction == "backward" else values
        assert name not in found
        found[name] = tensor.clone()

    watched(look, **changes)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())
    for index in range(model.num_layers):
        layer = f"decoder.layers.{index}."
        for before, after, weight in (
            ("attention_norm", "qkv", "self_attention.linear_qkv.weight"),
            ("attention_context", "attention_output", "self_attention.linear_proj.weight"),
            ("mlp_norm", "mlp_gate_and_up", "mlp.linear_fc1.weight"),
            ("mlp_activation", "mlp_output", "mlp.linear_fc2.weight"),
        ):
            outer = torch.einsum("sbo,sbi->oi", gradients[layer + after], values[layer + before])
            torch.testing.assert_close(outer, expected[layer + weight], rtol=1e-4, atol=1e-7)
        # The residual stream in front of a layer is the one behind the layer before.
        source = f"decoder.layers.{index - 1}.residual" if index else "embedding.embedding"
        assert torch.equal(values[layer + "layer_input"], values[source])


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("path", MODULES)
@pytest.mark.usefixtures("one_process")
def test_the_first_one_is_named(path: str, direction: str) -> None:
    """One element of one module of layer 2, in the second of three micro-batches, of its output or its gradient."""
    from megatron_kaiyuan.monitor.first_out_of_range import FirstOutOfRange, FirstOverflow, Seen

    _, network = network_of()
    passes = 0

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone(memory_format=torch.contiguous_format)
        spoilt.view(-1)[7] = torch.inf
        return spoilt

    def plant(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal passes
        passes += 1
        whole = output[0] if isinstance(output, tuple) else output
        if passes != 2:
            return None
        if direction == "backward":
            whole.register_hook(spoil)
            return None
        return (spoil(whole), *output[1:]) if isinstance(output, tuple) else spoil(whole)

    handle = network.decoder.layers[1].get_submodule(path).register_forward_hook(plant)
    first = FirstOutOfRange(saturates=False)
    try:
        watched(first, micro_batches=3)
    finally:
        handle.remove()
    tensor, used_by = MODULES[path]
    module = path if direction == "forward" else used_by
    found = first.first
    assert isinstance(found, FirstOverflow)
    assert (found.seen, found.micro_batch) == (Seen("layer", 2, tensor, module, direction), 1)  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_process")
def test_what_is_out_of_range() -> None:
    from megatron_kaiyuan.monitor.first_out_of_range import out_of_range

    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        largest = torch.finfo(dtype).max
        for value in (0.0, 1.0, -largest, largest):
            assert not out_of_range(torch.tensor([0.0, value], dtype=dtype), saturates=False)
        for value in (torch.inf, -torch.inf, torch.nan):
            for saturates in (False, True):
                assert out_of_range(torch.tensor([0.0, value], dtype=dtype), saturates)
    # A device that saturates makes 65,504 of what is beyond; what is next to it was computed.
    assert out_of_range(torch.tensor([-65504.0], dtype=torch.float16), saturates=True)
    assert not out_of_range(torch.tensor([65472.0], dtype=torch.float16), saturates=True)
    assert not out_of_range(torch.tensor([65504.0], dtype=torch.float32), saturates=True)
