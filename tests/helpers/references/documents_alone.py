"""Loss and gradient of a global batch, computed one piece at a time on a fresh network: no masks, no batches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import RunConfig


def loss_and_gradient_norm(run: RunConfig, pieces: Iterable[tuple[np.ndarray, list[bool]]]) -> tuple[float, float]:
    """Mean nats over the labels that count, and the norm of its gradient, at the weights that a run starts from.

    Args:
        pieces: ids [n + 1] that are seen alone, inputs and one label behind the last; which of the n labels count.
    """
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.model.build import build_model, transformer_config
    from megatron_kaiyuan.train.start import build_state

    with single_process(device):
        network = build_model(run.model, transformer_config(run.model, run.parallel))
        network.load_state_dict(build_state(run, device).network.chunks[0].state_dict())
        total, count = torch.zeros(()), 0
        for piece, counts in pieces:
            ids = torch.from_numpy(piece.astype(np.int64))
            logits = network(ids[None, :-1], torch.arange(len(ids) - 1)[None], None)[0]
            nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            total, count = total + nats[torch.tensor(counts)].sum(), count + sum(counts)
        (total / count).backward()
        norm = torch.stack([parameter.grad.square().sum() for parameter in network.parameters()]).sum().sqrt()
    return (total / count).item(), norm.item()
