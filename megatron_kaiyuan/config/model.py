"""The section `model`: the shape of the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.config.section import Section


class ModelConfig(Section):
    """The shape of the network and the three additions that keep it inside FP16.

    Fields that a recipe leaves out come from the preset it names.
    """

    preset: Annotated[
        Literal[tuple(PRESETS)] | None,  # type: ignore[valid-type]
        Field(description="a named shape, which the other fields change"),
    ] = None
    num_layers: Annotated[int, Field(gt=0, description="layers, each attention and MLP")]
    hidden_size: Annotated[int, Field(gt=0, description="width of the residual stream")]
    ffn_hidden_size: Annotated[int, Field(gt=0, description="width inside the MLP (SwiGLU: of gate and of up)")]
    num_attention_heads: Annotated[int, Field(gt=0, description="query heads of a layer")]
    num_query_groups: Annotated[int, Field(gt=0, description="key and value heads, each shared by as many queries")]
    kv_channels: Annotated[int, Field(gt=0, multiple_of=2, description="size of one attention head")]
    vocab_size: Annotated[int, Field(gt=0, description="ids in the tokenizer; padded up to a multiple of 128")]
    max_position_embeddings: Annotated[int, Field(gt=0, description="the longest sequence, in tokens")]
    rotary_base: Annotated[int, Field(gt=0, description="base of the rotary embedding's wavelengths")] = 1_000_000
    layernorm_epsilon: Annotated[float, Field(gt=0, description="added to the mean square in each RMSNorm")] = 1e-6
    init_method_std: Annotated[float, Field(gt=0, description="standard deviation of fresh matrices")] = 0.02
    embedding_init_method_std: Annotated[float, Field(gt=0, description="of the fresh embedding")] = 1.0
    post_norm_initial_gain: Annotated[float, Field(gt=0, description="RMS that a fresh sub-layer adds")] = 0.1
    qk_layernorm: Annotated[bool, Field(description="RMSNorm of each head's queries and keys")] = True
    sandwich_norm: Annotated[bool, Field(description="x + norm_post(F(norm_pre(x))) round attention and MLP")] = True
    embedding_norm: Annotated[bool, Field(description="RMSNorm between the embedding and the first layer")] = False
    fp32_residual: Annotated[bool, Field(description="residual stream in FP32; sub-layers keep the precision")] = False
    fp32_head: Annotated[bool, Field(description="final norm and logits in FP32, from weights as they are")] = False
    logits_soft_cap: Annotated[
        float | None, Field(gt=0, description="c of c * tanh(logits / c), in FP32; null turns it off")
    ] = 30.0

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("preset"), str) and values["preset"] in PRESETS:
            return {**PRESETS[values["preset"]], **values}
        return values

    @model_validator(mode="after")
    def _check_shape(self) -> ModelConfig:
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_query_groups {self.num_query_groups}"
            )
        return self

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to 128, the same for any layout of ranks."""
        return -(-self.vocab_size // 128) * 128
