"""What stays of a forward pass, against the tensors that autograd really saves; peaks against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.backend.choose import TORCH, Backend, choose
from megatron_kaiyuan.config import BackendConfig, RunConfig
from megatron_kaiyuan.planning.activations import MicroBatch
from megatron_kaiyuan.planning.memory import fullest_stage, stage_memory
from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.platform.datasheets import DEVICES
from tests.helpers.training.small_recipe import small_run

FULL, CORE = {"recompute_granularity": "full"}, {"recompute_granularity": "selective"}
MLP = CORE | {"recompute_modules": ["mlp"]}
LONG = {"seq_length": 256, "micro_batch_size": 3, "global_batch_size": 3}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


def saved_bytes(network: torch.nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd saves in a forward pass, parameters apart."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def really_saved(run: RunConfig, backend: Backend) -> int:
    from megatron_kaiyuan.model.build import build_model, transformer_config

    config = transformer_config(run.model, run.parallel, run.train.precision)
    network = build_model(run.model, config, z_loss=run.train.z_loss, backend=backend)
    for layer in network.decoder.layers:
        # As on a CPU with instructions for half precision; without, attention computes its statistics again.
        layer.self_attention.core_attention._emulated = set()
    ids_bs = torch.randint(run.model.vocab_size, (run.train.micro_batch_size, run.train.seq_length))
    positions_bs = torch.arange(run.train.seq_length).expand_as(ids_bs)
    documents_bs = positions_bs // 100 if run.data.reset_attention_mask else None
    return saved_bytes(network, lambda: network(ids_bs, positions_bs, documents_bs, labels=ids_bs))


@pytest.mark.parametrize("device", ["cpu", "910a", "910b"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"num_query_groups": 4}},
        {"model": {"sandwich_norm": False, "qk_layernorm": False}},
        {"data": {"reset_attention_mask": True}},
        {"parallel": FULL},
        {"parallel": FULL, "data": {"reset_attention_mask": True}},
        {"parallel": FULL, "model": {"fp32_residual": True}},
        {"parallel": CORE},
        {"parallel": CORE, "data": {"reset_attention_mask": True}},
        {"parallel": MLP},
        {"parallel": CORE | {"recompute_modules": ["mlp", "core_attn"]}, "model": {"sandwich_norm": False}},
        {"parallel": MLP, "model": {"fp32_residual": True}},
        {"model": {"embedding_norm": True}},
        {"model": {"embedding_norm": True, "fp32_residual": True}},
        {"model": {"fp32_head": True}},
        {"model": {"fp32_head": True, "fp32_residual": True}},
    ],
    ids=[
        *("kaiyuan", "a group a head", "plain", "documents apart", "full", "full, documents apart"),
        *("full, stream in FP32", "core attention", "core attention, documents apart", "mlp"),
        *("mlp and core attention, plain", "mlp, stream in FP32", "embedding norm", "residual stream in FP32"),
        *("head in FP32", "both in FP32"),
    ],
)
def test_what_autograd_saves(device: str, precision: str, sections: dict[str, Any]) -> None:
    """A 910B keeps documents apart by a mask, as a CPU does with torch's kernels; a 910A takes blocks of queries."""
    run = small_run(**sections, train={**LONG, "precision": precision})
    batch = MicroBatch(PipelineStage(run, 1, 0), DEVICES[device])
    expected = batch.saved()
    if run.data.reset_attention_mask:
        # The batch keeps the numbers of documents, and what is made of them once for all layers is no saved tensor;
        # autograd keeps the numbers where it recomputes attention.
        expected -= 0 if run.parallel.recomputed - {"mlp"} else 8 * batch.tokens
        expected -= batch.tokens * run.train.seq_length if device != "cpu" else 0
    backend = {
        "cpu": choose(BackendConfig(), platform.current()),
        "910a": choose(BackendConfig(attention="blocked", document_attention="blocked"), platform.current()),
        "910b": TORCH,
    }[device]
    # Besides the layers the logits, as the head gave them.
    assert really_saved(run, backend) - batch.head_element * batch.logits == pytest.approx(expected, rel=0.005)


def test_z_loss_saves_numbers_a_token_only() -> None:
    plain, with_it = (small_run(train={**LONG, "z_loss": z_loss}) for z_loss in (0.0, 1e-4))
    tokens = MicroBatch(PipelineStage(plain, 1, 0), DEVICES["cpu"]).tokens
    of_plain, of_both = (really_saved(run, TORCH) for run in (plain, with_it))
    assert of_plain <= of_both <= of_plain + 64 * tokens


def test_the_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    run = small_run(parallel={"pipeline_model_parallel_size": 4})
    of_stage = [stage_memory(PipelineStage(run, 4, index), DEVICES["h100"]).device.activations for index in range(4)]
    saved = [MicroBatch(PipelineStage(run, 4, index), DEVICES["h100"]).saved() for index in range(4)]
    assert [activations // one for activations, one in zip(of_stage, saved, strict=True)] == [4, 3, 2, 1]
    few = small_run(parallel={"pipeline_model_parallel_size": 4}, train={"global_batch_size": 2})
    assert stage_memory(PipelineStage(few, 4, 0), DEVICES["h100"]).device.activations == 2 * saved[0]


def test_virtual_stages_have_more_in_flight() -> None:
    """Two stages of two chunks: four chunks in the warm-up of the first rank, two in the last one's, and one more."""
    two = {"pipeline_model_parallel_size": 2}
    run = small_run(parallel=two | {"virtual_pipeline_model_parallel_size": 2})
    of_stage = [stage_memory(PipelineStage(run, 2, index), DEVICES["h100"]).device.activations for index in range(2)]
    batches = [MicroBatch(PipelineStage(run, 2, index), DEVICES["h100"]) for index in range(2)]
    assert of_stage == [5 * batches[0].saved() // 2, 3 * batches[1].saved() // 2]
    plain = MicroBatch(PipelineStage(small_run(parallel=two), 2, 0), DEVICES["h100"])
    assert batches[0].saved() == plain.saved() + plain.hidden


def test_cutting_tensors_and_sequences_saves_memory() -> None:
    whole = fullest_stage(small_run(), 4, DEVICES["h100"]).device
    cut = fullest_stage(small_run(parallel={"tensor_model_parallel_size": 2}), 4, DEVICES["h100"]).device
    both = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    sequences = fullest_stage(small_run(parallel=both), 4, DEVICES["h100"]).device
    assert cut.weights == pytest.approx(whole.weights / 2, rel=0.05)
    assert cut.logits == whole.logits // 2
    # Everything between the linear layers is cut, and nothing is held twice.
    assert sequences.activations == pytest.approx(whole.activations / 2, rel=0.05)
    assert sequences.activations < cut.activations < whole.activations


def test_attention_without_a_fused_kernel_holds_blocks_of_scores() -> None:
    """Three tensors in FP32 of an eighth of the queries, for one sample at a time; nothing is saved but its inputs."""
    lengths = 1024, 2048
    runs = [small_run(train={"seq_length": length, "micro_batch_size": 4}) for length in lengths]
    of_scores = [3 * 4 * 4 * length**2 // 8 for length in lengths]
    for run, scores, length in zip(runs, of_scores, lengths, strict=True):
        fused, blocked = (stage_memory(PipelineStage(run, 1, 0), DEVICES[name]).device for name in ("910b", "910a"))
        # A number a query and head, in each of four layers.
        assert fused.activations - blocked.activations == 4 * 4 * 4 * 4 * length
        assert scores < blocked.buffers < scores + fused.buffers


@pytest.mark.parametrize(("changes", "part"), [(FULL, "_layer"), (CORE, "_attention"), (MLP, "_mlp")])
def test_what_is_recomputed_is_there_for_one_layer_at_a_time(changes: dict[str, Any], part: str) -> None:
    """One layer's activations less the others' stay."""
    kept, again = (
        MicroBatch(PipelineStage(small_run(parallel=parallel), 1, 0), DEVICES["910b"]) for parallel in ({}, changes)
    )
    restored = max(again.computed_again())
    assert again.saved() + restored < kept.saved() < again.saved() + 5 * restored
    assert kept.computed_again() == (0, 0) and 0 < restored <= getattr(kept, part)()
