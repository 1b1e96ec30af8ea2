"""A network of the smallest preset."""

from __future__ import annotations

from typing import Any

import torch

from megatron_kaiyuan.config import ModelConfig, ParallelConfig


def tiny(**changes: object) -> ModelConfig:
    return ModelConfig(preset="kaiyuan-tiny", **changes)  # type: ignore[arg-type,call-arg]


def build(model: ModelConfig, precision: str = "fp32") -> Any:
    from megatron_kaiyuan.model.build import build_model, transformer_config

    torch.manual_seed(0)
    return build_model(model, transformer_config(model, ParallelConfig(), precision))


def forward(network: Any, model: ModelConfig, length: int = 32) -> torch.Tensor:
    ids_bs = torch.randint(model.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(ids_bs, torch.arange(length).expand(2, -1), None)
