"""FLOPs against torch's own counter, times against the figures that the assumption comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.planning.links import data_ring
from megatron_kaiyuan.planning.parameters import PipelineStage, chunk_buckets, chunk_sizes
from megatron_kaiyuan.planning.speed import (
    flops_per_step,
    flops_per_token,
    recomputed_flops,
    speed,
    stage_work,
)
from megatron_kaiyuan.planning.stage_time import stage_time
from megatron_kaiyuan.platform.datasheets import DEVICES
from tests.helpers.training.small_recipe import KAIYUAN_2B, small_run

FULL, ATTENTION = {"recompute_granularity": "full"}, {"recompute_granularity": "selective"}
NO_OVERLAP = ["parallel.overlap_param_gather=false", "parallel.overlap_grad_reduce=false"]
MLP = {**ATTENTION, "recompute_modules": ["mlp"]}


@pytest.mark.parametrize(("recompute", "passes_of_attention"), [({}, 3), (FULL, 4), (MLP, 3), (ATTENTION, 4)])
def test_flops_are_those_of_the_matrix_products(recompute: dict[str, Any], passes_of_attention: int) -> None:
    run = small_run(train={"micro_batch_size": 2, "global_batch_size": 2}, parallel=recompute)
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.model.build import build_model, transformer_config

    with single_process(device), FlopCounterMode(display=False) as counter:
        network = build_model(run.model, transformer_config(run.model, run.parallel))
        ids_bs = torch.randint(run.model.vocab_size, (2, run.train.seq_length))
        network(ids_bs, torch.arange(run.train.seq_length).expand_as(ids_bs), None, labels=ids_bs).sum().backward()
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    # Scores and values, forward, twice back and what is recomputed, half of all pairs of tokens.
    pairs = run.train.seq_length**2 / 2 * 2
    model = run.model
    attention = passes_of_attention * 2 * 2 * pairs * model.num_attention_heads * model.kv_channels * model.num_layers
    again = run.train.tokens_per_step * run.model.num_layers * recomputed_flops(run)
    assert flops_per_step(run) + again == products + attention


def test_both_conventions_for_attention() -> None:
    """PaLM, appendix B: 6 N + 12 L H Q T a token, N the weights that a token is multiplied with; and causal half."""
    run = small_run()
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.model.build import build_model, transformer_config

    with single_process(device):
        network = build_model(run.model, transformer_config(run.model, run.parallel))
    matrices = {name: weight.numel() for name, weight in network.named_parameters() if weight.dim() == 2}
    n = sum(count for name, count in matrices.items() if "embedding" not in name)
    # 4 layers, 4 heads of 18, 64 tokens.
    attention = 12 * 4 * 4 * 18 * 64
    assert flops_per_token(run, causal=False) == 6 * n + attention
    assert flops_per_token(run, causal=True) == 6 * n + attention / 2
    assert flops_per_step(run) == run.train.tokens_per_step * flops_per_token(run, causal=True)


def test_parameters_are_the_sum_of_the_stages() -> None:
    run = load_run(Path(KAIYUAN_2B), ["parallel.pipeline_model_parallel_size=4"])
    assert count_parameters(run.model) == sum(
        sum(map(sum, chunk_sizes(PipelineStage(run, 4, index)))) for index in range(4)
    )
    assert round(count_parameters(run.model) / 1e9, 3) == 2.032


def test_all_cards_of_a_node_carry_the_gradients() -> None:
    """Data-parallel ranks of a node share its cards: eight of them without tensor parallelism, one with eight."""

    def gradient_seconds(tensor: int) -> float:
        run = load_run(Path(KAIYUAN_2B), [f"parallel.tensor_model_parallel_size={tensor}", *NO_OVERLAP])
        found = [speed(run, 64, replace(device, half_tflops=1e9, node_gb_per_second=1e9), 1.0) for device in cards]
        assert found[0] is not None and found[1] is not None
        return found[0].step_seconds - found[1].step_seconds

    h100 = DEVICES["h100"]
    cards = h100, replace(h100, network_gb_per_second=1e9)
    # 6 bytes a weight, over eight cards of 50 GB/s at 80 %, or an eighth of them over one card.
    assert gradient_seconds(1) == pytest.approx(
        6 * count_parameters(load_run(Path(KAIYUAN_2B)).model) / 3.2e11, rel=0.02
    )
    assert gradient_seconds(8) == pytest.approx(gradient_seconds(1), rel=0.15)


def test_what_overlap_exposes_by_hand() -> None:
    """Two nodes: all buckets but the last hide beside the last backward pass, if the cards are fast enough."""
    run = load_run(Path(KAIYUAN_2B), ["train.micro_batch_size=8"])
    stage = PipelineStage(run, 16, 0)
    time = stage_time(stage, DEVICES["h100"], flops=1e15, rate=1e14)
    (buckets,) = chunk_buckets(stage)
    over = data_ring(DEVICES["h100"], stage)
    assert len(buckets) > 10
    assert time.gradients == pytest.approx(over.round_seconds(4 * buckets[-1].elements))
    # The table of embeddings, the first weight that a forward pass needs, is the last bucket.
    assert time.weights == pytest.approx(over.round_seconds(2 * buckets[-1].elements))
    waiting = load_run(Path(KAIYUAN_2B), ["train.micro_batch_size=8", *NO_OVERLAP])
    alone = stage_time(PipelineStage(waiting, 16, 0), DEVICES["h100"], flops=1e15, rate=1e14)
    assert alone.gradients > 5 * time.gradients
    # Without the distributed optimizer an all-reduce of two rounds, and no weights to gather.
    whole = load_run(Path(KAIYUAN_2B), ["parallel.use_distributed_optimizer=false", *NO_OVERLAP])
    plain = stage_time(PipelineStage(whole, 16, 0), DEVICES["h100"], flops=1e15, rate=1e14)
    assert plain.weights == 0 and plain.gradients == pytest.approx(2 * alone.gradients, rel=0.01)
    # More ranks, larger buckets: fewer starts, and steps of longer rings.
    assert len(chunk_buckets(PipelineStage(run, 1024, 0))[0]) < 3


def simulated_pipeline(seconds: list[float], micro_batches: int) -> float:
    """One forward, one backward (megatron-core's schedule without virtual stages), a backward pass twice as long.

    Args:
        seconds: of a micro-batch, forward and backward, on each stage.
    """
    stages = len(seconds)
    orders = []
    for index in range(stages):
        ahead = min(stages - index - 1, micro_batches)
        steady = [step for i in range(micro_batches - ahead) for step in (("f", i + ahead), ("b", i))]
        last = [("b", i) for i in range(micro_batches - ahead, micro_batches)]
        orders.append([("f", i) for i in range(ahead)] + steady + last)
    done: dict[tuple[str, int, int], float] = {}
    clocks, places = [0.0] * stages, [0] * stages
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        for index in range(stages):
            if places[index] == len(orders[index]):
                continue
            kind, batch = orders[index][places[index]]
            needs = (kind, batch, index - 1 if kind == "f" else index + 1)
            if 0 <= needs[2] < stages and needs not in done:
                continue
            start = max(clocks[index], done.get(needs, 0.0))
            clocks[index] = start + seconds[index] * (1 / 3 if kind == "f" else 2 / 3)
            done[kind, batch, index] = clocks[index]
            places[index] += 1
    return max(clocks)


@pytest.mark.parametrize(("stages", "micro"), [(2, 1), (4, 1), (4, 8), (7, 2), (4, 32)])
def test_bubbles_are_those_of_the_schedule(stages: int, micro: int) -> None:
    """Stages of which the last has the head besides, nothing sent."""
    overrides = [f"parallel.pipeline_model_parallel_size={stages}", f"train.micro_batch_size={micro}", *NO_OVERLAP]
    run, ranks = load_run(Path(KAIYUAN_2B), overrides), 16 * stages
    device = replace(DEVICES["h100"], node_gb_per_second=None, network_gb_per_second=None)
    found = speed(run, ranks, device, 0.4)
    every = [PipelineStage(run, ranks, index) for index in range(stages)]
    seconds = [stage_time(stage, device, stage_work(stage), 0.4 * 989.4e12).micro_batch for stage in every]
    assert found is not None
    assert found.step_seconds == pytest.approx(simulated_pipeline(seconds, every[0].micro_batches), rel=0.01)


def test_products_hide_collectives_of_tensor_parallelism() -> None:
    """As many bytes are sent; what a backward pass starts beside a product is waited for less."""

    def seconds(tensor_overlap: bool, *overrides: str) -> float:
        run = load_run(Path(KAIYUAN_2B), ["parallel.tensor_model_parallel_size=2", *NO_OVERLAP, *overrides])
        found = speed(run, 64, DEVICES["h100"], 0.4, tensor_overlap)
        assert found is not None
        return found.step_seconds

    for shape in ([], ["parallel.sequence_parallel=true"]):
        assert 0.9 * seconds(False, *shape) < seconds(True, *shape) < 0.99 * seconds(False, *shape)


def test_waiting_costs_time() -> None:
    def seconds(world_size: int, *overrides: str) -> float:
        found = speed(load_run(Path(KAIYUAN_2B), [*NO_OVERLAP, *overrides]), world_size, DEVICES["h100"], 0.3)
        assert found is not None
        return found.step_seconds

    pipeline, tensor = "parallel.pipeline_model_parallel_size=", "parallel.tensor_model_parallel_size="
    assert seconds(64) < seconds(64, pipeline + "2") < seconds(64, pipeline + "4")
    assert seconds(64) < seconds(64, tensor + "2") < seconds(64, tensor + "8")
    # Gradients take as long to reduce with half of the ranks.
    assert 1.9 * seconds(64) < seconds(32) < 2 * seconds(64)
    again = "parallel.recompute_granularity="
    assert seconds(64) < seconds(64, again + "selective") < seconds(64, again + "full") < 4 / 3 * seconds(64)
    # Few micro-batches leave the stages idle.
    few, many = "train.micro_batch_size=32", "train.micro_batch_size=1"
    assert seconds(64, pipeline + "4", few) > 1.3 * seconds(64, pipeline + "4", many)
    reduced, gathered = "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"
    assert seconds(64, reduced, gathered) < seconds(64, reduced) < seconds(64)


def test_a_cpu_has_no_peak_that_we_know() -> None:
    assert speed(load_run(Path(KAIYUAN_2B)), 64, DEVICES["cpu"], 0.3) is None
