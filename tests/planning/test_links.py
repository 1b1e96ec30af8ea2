"""Seconds of collectives: by hand for small groups, and against a ring that is walked through step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kaiyuan.planning import links
from megatron_kaiyuan.planning.links import Ring, data_ring, neighbour_bytes_per_second, ring, tensor_ring
from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.platform.datasheets import DEVICES
from tests.helpers.training.small_recipe import small_run

H100 = DEVICES["h100"]
# 450 and 50 GB/s, of which 80 % count.
NODE, CARD = 3.6e11, 4e10


def test_a_ring_within_a_node_by_hand() -> None:
    """Four ranks, 8 GB: three quarters of it over 360 GB/s, a start and three steps."""
    found = ring(H100, ranks=4, stride=1)
    assert found == Ring(4, 1, NODE)
    assert found.round_seconds(8e9) == pytest.approx(6e9 / NODE + 8.4e-6 + 3 * 3.4e-6)
    assert ring(H100, ranks=1, stride=1).round_seconds(8e9) == 0


def test_a_node_sends_through_all_of_its_cards() -> None:
    """Two nodes without tensor parallelism: eight cards, 320 GB/s, less than the node's own links."""
    found = ring(H100, ranks=16, stride=1)
    assert found == Ring(16, 2, 8 * CARD)
    assert found.round_seconds(16e9) == pytest.approx(15e9 / 3.2e11 + 8.4e-6 + 14 * 3.4e-6 + 14e-6)
    # Cards that are faster than the links in a node: these count.
    assert ring(replace(H100, network_gb_per_second=400), ranks=16, stride=1).bytes_per_second == NODE


@pytest.mark.parametrize(
    ("stride", "ranks", "nodes", "cards"),
    [
        (8, 4, 4, 1.0),  # TP 8: one rank of each group in a node, a card of its own.
        (2, 16, 4, 4 * links.SHARED_CARDS),  # TP 2: four ranks of each of two groups.
        (4, 16, 8, 2 * links.SHARED_CARDS),
        (16, 3, 3, 1.0),  # TP 16: a group has no two ranks in a node.
    ],
)
def test_groups_that_share_a_nodes_cards(stride: int, ranks: int, nodes: int, cards: float) -> None:
    found = ring(H100, ranks, stride)
    assert (found.ranks, found.nodes) == (ranks, nodes)
    assert found.bytes_per_second == pytest.approx(cards * CARD)


def test_links_that_are_not_known_cost_nothing() -> None:
    assert ring(DEVICES["cpu"], ranks=16, stride=1).round_seconds(1e12) == 0


def test_which_ranks_make_a_group() -> None:
    """Sixteen ranks, TP 2, PP 2: four data-parallel ranks, two apart, lie in one node; a stage in each node."""
    stage = PipelineStage(
        small_run(parallel={"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}), world_size=16, index=0
    )
    assert (tensor_ring(H100, stage).ranks, tensor_ring(H100, stage).nodes) == (2, 1)
    assert (data_ring(H100, stage).ranks, data_ring(H100, stage).nodes) == (4, 1)
    assert neighbour_bytes_per_second(H100, stage) == pytest.approx(CARD)
    small = PipelineStage(stage.run, world_size=8, index=0)
    assert neighbour_bytes_per_second(H100, small) == pytest.approx(NODE)


@settings(max_examples=40, deadline=None)
@given(nodes=st.integers(2, 5), in_a_node=st.integers(1, 8), node=st.integers(50, 900), card=st.integers(5, 100))
def test_rings_on_rails_walked_through(nodes: int, in_a_node: int, node: int, card: int) -> None:
    """A ring for each card, each with its share of the message: a step lasts as long as its slowest edge does.

    A rank's links in the node carry all rings at once; a card carries one.
    """
    message, ranks = 1e9, nodes * in_a_node
    share = message / in_a_node / ranks
    seconds = 0.0
    for _ in range(ranks - 1):
        out_of_the_node = share / (card * 1e9 * links.LINK_EFFICIENCY)
        within = in_a_node * share / (node * 1e9 * links.LINK_EFFICIENCY) if in_a_node > 1 else 0.0
        seconds += max(out_of_the_node, within)
    device = replace(H100, per_node=in_a_node, node_gb_per_second=node, network_gb_per_second=card)
    found = ring(device, ranks, stride=1)
    assert found.round_seconds(message) - found.round_seconds(0) == pytest.approx(seconds)
