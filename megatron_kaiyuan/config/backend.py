"""The section `backend`: the library that computes each operation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_kaiyuan.config.section import Section


class BackendConfig(Section):
    """What computes the operations between the matrix products: a library, or the first choice of the device."""

    norm: Annotated[
        Literal["auto", "torch", "compiled", "liger", "npu"],
        Field(description="RMSNorm; compiled: by torch.compile; liger: Liger's Triton kernels; npu: CANN's"),
    ] = "auto"
    swiglu: Annotated[
        Literal["auto", "torch", "compiled", "liger", "npu"], Field(description="silu(gate) * up of the MLP")
    ] = "auto"
    rope: Annotated[Literal["auto", "torch", "compiled"], Field(description="the rotary embedding")] = "auto"
    loss: Annotated[
        Literal["auto", "torch", "compiled"], Field(description="soft cap and cross-entropy, block by block")
    ] = "auto"
    attention: Annotated[
        Literal["auto", "torch", "cudnn", "flash", "efficient", "blocked"],
        Field(
            description="one of torch's own kernels, or torch's choice among them; blocked: plain operations on some "
            "queries at a time, for devices without such a kernel"
        ),
    ] = "auto"
    document_attention: Annotated[
        Literal["auto", "torch", "flex", "split", "blocked"],
        Field(
            description="with data.reset_attention_mask; torch: under a mask of all pairs; blocked: likewise, some "
            "queries at a time"
        ),
    ] = "auto"
    weight_gradient: Annotated[
        Literal["auto", "torch", "fused"],
        Field(description="half precision; fused: the product adds itself to the FP32 sum, torch: another kernel does"),
    ] = "auto"
    passes: Annotated[
        Literal["auto", "torch", "cuda_graphs"],
        Field(description="CUDA graphs of a micro-batch, where one rank has the whole network"),
    ] = "auto"
