"""Seconds of a collective in a group of ranks, from the links within a node and the network cards between nodes.

A ring over n ranks (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009), as a library lays it out: first through
the ranks of a node, then out through a card to the next node. It runs a ring for each card that the group's ranks in a
node have (their rails), so that together they send through all of these, as far as the links within the node allow.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.platform.datasheets import Device

# Of a link's figure in large collectives (ours).
LINK_EFFICIENCY = 0.8
# Of that, what a group gets of the cards when several groups of the same nodes send at once, as data-parallel groups do
# beside tensor parallelism. Fitted to measured layouts on A100s (`python -m benchmarks.published_runs`).
SHARED_CARDS = 0.2
# Source: NCCL 2.27, src/graph/tuning.cc: a collective's start, and a ring's step within a node and to another node
# (protocol Simple, NVLink). Taken for other libraries too.
_START_SECONDS, _STEP_SECONDS, _NETWORK_STEP_SECONDS = 8.4e-6, 3.4e-6, 14.0e-6


@dataclass(frozen=True)
class Ring:
    """A group's ring.

    Attributes:
        ranks: of the group.
        nodes: that they lie in.
        bytes_per_second: that each rank sends and receives at once; endless where the links are not known.
    """

    ranks: int
    nodes: int
    bytes_per_second: float

    def round_seconds(self, message: float) -> float:
        """One reduce-scatter, or one all-gather, of a message of so many bytes; an all-reduce is two rounds."""
        if self.ranks == 1 or self.bytes_per_second == float("inf"):
            return 0.0
        between = self.nodes - 1
        steps = (self.ranks - 1 - between) * _STEP_SECONDS + between * _NETWORK_STEP_SECONDS
        return _START_SECONDS + steps + message * (self.ranks - 1) / self.ranks / self.bytes_per_second


def ring(device: Device, ranks: int, stride: int) -> Ring:
    """The ring over ranks that lie so many apart, where `device.per_node` neighbouring ones share a node."""
    in_a_node = max(1, min(ranks, device.per_node // stride))
    nodes = -(-ranks // in_a_node)
    within = _bytes_per_second(device.node_gb_per_second)
    if nodes == 1:
        return Ring(ranks, nodes, within)
    shared = SHARED_CARDS if 1 < stride < device.per_node else 1.0
    cards = in_a_node * shared * _bytes_per_second(device.network_gb_per_second)
    return Ring(ranks, nodes, cards if in_a_node == 1 else min(within, cards))


def tensor_ring(device: Device, stage: PipelineStage) -> Ring:
    """Tensor-parallel ranks are neighbours."""
    return ring(device, stage.run.parallel.tensor_model_parallel_size, 1)


def data_ring(device: Device, stage: PipelineStage) -> Ring:
    """Data-parallel ranks come next."""
    return ring(device, stage.data_parallel_size, stage.run.parallel.tensor_model_parallel_size)


def neighbour_bytes_per_second(device: Device, stage: PipelineStage) -> float:
    """To the next pipeline stage, which comes last: in another node unless the whole run fits into one."""
    figure = device.node_gb_per_second if stage.world_size <= device.per_node else device.network_gb_per_second
    return _bytes_per_second(figure)


def _bytes_per_second(figure: float | None) -> float:
    return float("inf") if figure is None else figure * 1e9 * LINK_EFFICIENCY
