"""What every side of `benchmarks.train_step` is given, and how it answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch


@dataclass(frozen=True)
class Shape:
    """A network and what it is trained on in a step."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_size: int = 64
    vocabulary: int = 8192
    seq_length: int = 512
    batch: int = 4
    micro_batch: int = 4


@dataclass(frozen=True)
class Case:
    shape: Shape
    precision: str
    platform: str

    @property
    def tokens(self) -> int:
        return self.shape.batch * self.shape.seq_length


Step: TypeAlias = Callable[[], None]


def random_tokens(case: Case) -> torch.Tensor:
    shape, drawn = case.shape, torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary, (shape.batch, shape.seq_length + 1), generator=drawn).to(case.platform)


def recipe_of(shape: Shape) -> dict[str, Any]:
    """The section `model` of a recipe."""
    return {
        "preset": "kaiyuan-tiny",
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.groups,
        "kv_channels": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.seq_length,
    }


def serve(case: Case, step: Step, network: torch.nn.Module, pipe: Any, flops_per_token: float | None = None) -> None:
    """Answer with what the side is, then each question with the seconds of one step and the largest memory in GiB."""
    on_gpu = case.platform == "cuda"

    def finished_step() -> None:
        step()
        if on_gpu:
            torch.cuda.synchronize()

    for _ in range(2):  # the first ones allocate
        finished_step()
    pipe.send((sum(parameter.numel() for parameter in network.parameters()), flops_per_token))
    while pipe.recv():
        began = time.perf_counter()
        finished_step()
        pipe.send((time.perf_counter() - began, torch.cuda.max_memory_allocated() / (1 << 30) if on_gpu else 0.0))
