"""The section `parallel`: how the network is cut over ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_kaiyuan.config.section import Section


class ParallelConfig(Section):
    """How the network is cut over ranks; what is left of the world is data parallel."""

    tensor_model_parallel_size: Annotated[int, Field(gt=0, description="ranks that share each matrix")] = 1
    pipeline_model_parallel_size: Annotated[int, Field(gt=0, description="ranks that share the layers, in turn")] = 1
    virtual_pipeline_model_parallel_size: Annotated[
        int, Field(gt=0, description="parts of the network on each pipeline rank, which take turns (interleaved 1F1B)")
    ] = 1
    context_parallel_size: Annotated[int, Field(gt=0, description="1 only, see docs/decisions.md")] = 1
    sequence_parallel: Annotated[
        bool, Field(description="cut what lies between the matrices along the sequence, over the tensor ranks")
    ] = False
    use_distributed_optimizer: Annotated[
        bool, Field(description="cut optimizer state over the data-parallel ranks")
    ] = True
    overlap_grad_reduce: Annotated[bool, Field(description="reduce gradients while the backward pass runs")] = False
    overlap_param_gather: Annotated[
        bool, Field(description="gather the updated weights while the next forward pass runs; with overlap_grad_reduce")
    ] = False
    recompute_granularity: Annotated[
        Literal["selective", "full"] | None,
        Field(description="computed again by the backward pass: parts of a layer, whole layers; null: nothing"),
    ] = None
    recompute_modules: Annotated[
        list[Literal["core_attn", "layernorm", "mlp"]] | None,
        Field(min_length=1, description="the parts, with selective; null: core_attn, the scores of attention"),
    ] = None
    timeout_minutes: Annotated[
        float | None,
        Field(
            gt=0,
            description="a collective, or a start with its first step, that takes longer ends the job; null: 10, and "
            "30 on devices that compile operators when first called (Ascend 910A)",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_context(self) -> ParallelConfig:
        if self.context_parallel_size > 1:
            raise ValueError(
                f"context_parallel_size {self.context_parallel_size}: Megatron Core 0.16 cuts sequences over ranks "
                "with Transformer Engine's attention only, which this network does not use; leave it at 1"
            )
        return self

    @model_validator(mode="after")
    def _check_gather(self) -> ParallelConfig:
        needed = ("use_distributed_optimizer", "overlap_grad_reduce")
        lacks = [name for name in needed if not getattr(self, name)]
        if self.overlap_param_gather and lacks:
            raise ValueError(f"overlap_param_gather needs {' and '.join(f'{name}: true' for name in lacks)}")
        return self

    @model_validator(mode="after")
    def _check_virtual(self) -> ParallelConfig:
        if self.virtual_pipeline_model_parallel_size > 1 and self.pipeline_model_parallel_size == 1:
            raise ValueError(
                f"virtual_pipeline_model_parallel_size {self.virtual_pipeline_model_parallel_size} needs "
                "pipeline_model_parallel_size above 1: one rank has no other to take turns with"
            )
        return self

    @model_validator(mode="after")
    def _check_recompute(self) -> ParallelConfig:
        if self.recompute_modules is not None and self.recompute_granularity != "selective":
            raise ValueError("recompute_modules needs recompute_granularity: selective")
        if "layernorm" in (self.recompute_modules or []):
            raise ValueError(
                "recompute_modules: Megatron Core 0.16 can recompute layernorm with Transformer Engine only; use "
                "core_attn and mlp, or recompute_granularity: full"
            )
        return self

    @property
    def virtual_stages(self) -> int | None:
        """As megatron-core wants it: None where the network of a rank is in one part."""
        return None if self.virtual_pipeline_model_parallel_size == 1 else self.virtual_pipeline_model_parallel_size

    @property
    def recomputed(self) -> frozenset[str]:
        """What the backward pass computes again: `layer`, or parts of one."""
        if self.recompute_granularity == "selective":
            return frozenset(self.recompute_modules or ["core_attn"])
        return frozenset(["layer"] if self.recompute_granularity == "full" else [])

    @property
    def model_parallel_size(self) -> int:
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size
