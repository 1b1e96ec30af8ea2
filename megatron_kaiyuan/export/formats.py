"""The folders that an export can be: which networks each one represents, and transformers' configuration of it.

`kaiyuan` has a class of its own, in a file in the folder, and represents every network exactly. The others are classes
that transformers has. Its Gemma 3 text class is this network written differently (`model/gemma3.py`):
`query_pre_attn_scalar` is the head size, every layer attends to the whole context, the activation is SiLU. Without
sandwich norm and soft cap the network is Qwen 3's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.network import not_in_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Format = Literal["kaiyuan", "gemma3", "qwen3"]
FORMATS: tuple[Format, ...] = get_args(Format)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Where transformers looks for the classes of a folder with a file of its own.
MODELING = "modeling_kaiyuan"
_AUTO_MAP = {
    "AutoConfig": f"{MODELING}.KaiyuanConfig",
    "AutoModel": f"{MODELING}.KaiyuanModel",
    "AutoModelForCausalLM": f"{MODELING}.KaiyuanForCausalLM",
}


def stock_format(model: ModelConfig) -> Format:
    """The class of transformers that this network is.

    Raises:
        UserError: there is none; naming the field that makes it so.
    """
    if not model.qk_layernorm:
        raise _no_stock("model.qk_layernorm is off, and neither Gemma 3 nor Qwen 3 can represent that")
    if (field := not_in_transformers(model)) is not None:
        value = getattr(model, field)
        raise _no_stock(f"model.{field} is {'on' if value is True else value}, and neither Gemma 3 nor Qwen 3 has that")
    if not model.sandwich_norm and model.logits_soft_cap is not None:
        raise _no_stock(
            "model.sandwich_norm is off while model.logits_soft_cap is set; Gemma 3 has sandwich norms, "
            "Qwen 3 has no soft cap: no stock transformers class represents both"
        )
    if model.sandwich_norm and model.hidden_size % model.num_attention_heads:
        raise _no_stock(
            f"transformers' Gemma 3 wants model.hidden_size {model.hidden_size} to be a multiple of "
            f"model.num_attention_heads {model.num_attention_heads}"
        )
    return "gemma3" if model.sandwich_norm else "qwen3"


def choose_format(model: ModelConfig, wanted: Format | None, dtype: str) -> Format:
    """The format to write; None: transformers' own class.

    Raises:
        UserError: the format does not represent the network, or not in this dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: is not one of {', '.join(DTYPES)}")
    if wanted is not None and wanted not in FORMATS:
        raise UserError(f"--format {wanted}: is not one of {', '.join(FORMATS)}")
    chosen = wanted if wanted == "kaiyuan" else stock_format(model)
    if wanted not in (None, chosen):
        raise UserError(
            f"--format {wanted}: this network is transformers' {chosen}; leave --format out, or say kaiyuan"
        )
    if chosen == "gemma3" and dtype != "float32":
        raise UserError(
            f"--dtype {dtype}: a gemma3 folder divides the embedding by sqrt(hidden_size), which is FP32's alone; say "
            "--format kaiyuan"
        )
    return chosen


def transformers_config(model: ModelConfig, chosen: Format, eos_token_id: int | None, dtype: str) -> PretrainedConfig:
    """The configuration object of the exported folder."""
    from transformers import Gemma3TextConfig, Qwen3Config

    shared: dict[str, Any] = {
        "vocab_size": model.padded_vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        "max_position_embeddings": model.max_position_embeddings,
        "initializer_range": model.init_method_std,
        "rms_norm_eps": model.layernorm_epsilon,
        "tie_word_embeddings": False,
        # A row of this id would get no gradient in fine-tuning; generation_config.json names the padding instead.
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "dtype": dtype,
    }
    if chosen == "kaiyuan":
        return _kaiyuan_config(model, shared)
    rope = {"rope_type": "default", "rope_theta": model.rotary_base}
    shared["layer_types"] = ["full_attention"] * model.num_layers
    if chosen == "qwen3":
        return Qwen3Config(**shared, rope_parameters=rope, hidden_act="silu")
    return Gemma3TextConfig(
        **shared,
        rope_parameters={"full_attention": rope, "sliding_attention": dict(rope)},
        hidden_activation="silu",
        query_pre_attn_scalar=model.kv_channels,
        # No layer slides; the class still builds a mask of this width.
        sliding_window=model.max_position_embeddings,
        final_logit_softcapping=model.logits_soft_cap,
        attn_logit_softcapping=None,
    )


def _kaiyuan_config(model: ModelConfig, shared: dict[str, Any]) -> PretrainedConfig:
    from megatron_kaiyuan.export.modeling_kaiyuan import KaiyuanConfig

    return KaiyuanConfig(
        **shared,
        rope_theta=model.rotary_base,
        qk_layernorm=model.qk_layernorm,
        sandwich_norm=model.sandwich_norm,
        embedding_norm=model.embedding_norm,
        fp32_residual=model.fp32_residual,
        fp32_head=model.fp32_head,
        final_logit_softcapping=model.logits_soft_cap,
        auto_map=_AUTO_MAP,
    )


def network_class(chosen: Format) -> type[PreTrainedModel]:
    """The class that an exported folder's network is of."""
    if chosen == "kaiyuan":
        from megatron_kaiyuan.export.modeling_kaiyuan import KaiyuanForCausalLM

        return KaiyuanForCausalLM
    from transformers import Gemma3ForCausalLM, Qwen3ForCausalLM

    return {"gemma3": Gemma3ForCausalLM, "qwen3": Qwen3ForCausalLM}[chosen]


def empty_network(config: PretrainedConfig, chosen: Format) -> PreTrainedModel:
    """The transformers model on the meta device: right names and shapes, no memory."""
    with torch.device("meta"):
        return network_class(chosen)(config)


def _no_stock(why: str) -> UserError:
    return UserError(f"export: {why}; --format kaiyuan represents every network")
