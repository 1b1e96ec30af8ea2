"""A checkpoint as a whole network of megatron-core, in FP32, to be looked at or measured."""

from __future__ import annotations

from pathlib import Path

from megatron.core.models.gpt import GPTModel

from megatron_kaiyuan.checkpoint.find import Weights
from megatron_kaiyuan.checkpoint.load import load_into
from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.model.build import build_model, transformer_config


def load_network(
    folder: Path, model: ModelConfig, weights: Weights = "model", parallel: ParallelConfig | None = None
) -> GPTModel:
    """Build the network on the CPU, in evaluation mode, and load a checkpoint's weights. Collective.

    The caller has verified `folder`.

    Args:
        parallel: how the network is cut over ranks, each of which gets its piece; None: process groups are those of
            one process.
    """
    network = build_model(model, transformer_config(model, parallel or ParallelConfig()))
    load_into(network, folder, weights)
    return network.eval()
