"""Megatron weights into a transformers folder that loads without code of ours (no trust_remote_code).

transformers' Gemma 3 text class is this network, written differently:
  - its RMSNorm multiplies by (1 + weight), so norm gains are stored as gain - 1;
  - it multiplies the embedding by sqrt(hidden), so the embedding is stored divided by it. That is exact only when
    sqrt(hidden) is a power of two, hence FP32 here;
  - `query_pre_attn_scalar` is the head size, every layer attends to the whole context, the activation is SiLU.
Without sandwich norm and soft cap the network is Qwen 3's.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.export.loading import load_tokenizer, quiet_transformers
from megatron_kaiyuan.export.older_names import add_older_names
from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.model import names
from megatron_kaiyuan.network import EMBEDDING, GATE_AND_UP, QKV, not_in_transformers
from megatron_kaiyuan.outputs import Output, check, claim, recorded_folder, write_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT, EXPORTED = "kaiyuan-export", "an exported model"
_FP32_BYTES = 4
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def export_model(
    weights: Mapping[str, torch.Tensor],
    model: ModelConfig,
    destination: Path,
    tokenizer_folder: Path | None,
    identity: str = "",
    force: bool = False,
) -> Path:
    """Write a Hugging Face model folder: FP32 safetensors, config, generation config, tokenizer.

    transformers 4 and 5 read it alike.

    Args:
        weights: full tensors by megatron-core name, as `dist_checkpointing.load_plain_tensors` gives them for a
            GPTModel: layers stacked along a first axis, or numbered in the name.
        destination: a new folder, or an earlier export of the same `identity`; its `manifest.json` lists its files.
        tokenizer_folder: a folder that `AutoTokenizer` loads; its end-of-text id becomes the end of generation.
        identity: fingerprint of what is exported.
        force: an earlier export of another identity may be replaced.

    Returns:
        `destination`.

    Raises:
        UserError: transformers is missing, no stock class represents the model, the tokenizer does not fit, the
            weights are not those of `model`, or `destination` holds something else.
    """
    require("transformers", extra="eval", purpose="the Hugging Face export")
    _check_representable(model)
    place = Output(destination, EXPORTED)
    needed = sum(tensor.numel() * _FP32_BYTES for tensor in weights.values())
    check(place, identity, recorded_folder(FORMAT), force, needed)
    eos_token_id = _end_of_text(tokenizer_folder, model) if tokenizer_folder else None
    network = _empty_network(model, eos_token_id)
    state = _to_transformers(names.split_layers(dict(weights), model.num_layers), model)
    _check_state(state, network)
    network.load_state_dict(state, assign=True)
    with (
        claim(place, identity, recorded_folder(FORMAT), force=force),
        atomic_path(place.path, replace_folder=True) as new,
    ):
        with quiet_transformers():
            network.save_pretrained(new)
            if tokenizer_folder:
                _copy_tokenizer(tokenizer_folder, new)
            add_older_names(new)
            if tokenizer_folder:
                load_tokenizer(new)
        write_record(new, FORMAT, identity)
    return destination


def _check_representable(model: ModelConfig) -> None:
    if not model.qk_layernorm:
        raise UserError("export: model.qk_layernorm is off, and neither Gemma 3 nor Qwen 3 can represent that")
    if (field := not_in_transformers(model)) is not None:
        value = getattr(model, field)
        raise UserError(
            f"export: model.{field} is {'on' if value is True else value}, and neither Gemma 3 nor Qwen 3 has that"
        )
    if not model.sandwich_norm and model.logits_soft_cap is not None:
        raise UserError(
            "export: model.sandwich_norm is off while model.logits_soft_cap is set; Gemma 3 has sandwich norms, "
            "Qwen 3 has no soft cap: no stock transformers class represents both"
        )
    if model.sandwich_norm and model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"export: transformers' Gemma 3 wants model.hidden_size {model.hidden_size} to be a multiple of "
            f"model.num_attention_heads {model.num_attention_heads}"
        )


def _empty_network(model: ModelConfig, eos_token_id: int | None) -> PreTrainedModel:
    """The transformers model on the meta device: right names and shapes, no memory."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3ForCausalLM

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
        "layer_types": ["full_attention"] * model.num_layers,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "dtype": "float32",
    }
    rope = {"rope_type": "default", "rope_theta": model.rotary_base}
    with torch.device("meta"):
        if not model.sandwich_norm:
            return Qwen3ForCausalLM(Qwen3Config(**shared, rope_parameters=rope, hidden_act="silu"))
        return Gemma3ForCausalLM(
            Gemma3TextConfig(
                **shared,
                rope_parameters={"full_attention": rope, "sliding_attention": dict(rope)},
                hidden_activation="silu",
                query_pre_attn_scalar=model.kv_channels,
                # No layer slides; the class still builds a mask of this width.
                sliding_window=model.max_position_embeddings,
                final_logit_softcapping=model.logits_soft_cap,
                attn_logit_softcapping=None,
            )
        )


def _to_transformers(weights: names.PlainWeights, model: ModelConfig) -> dict[str, torch.Tensor]:
    """Rename, split and rescale every weight; FP32, contiguous, on the CPU."""
    table = names.renamed_in_layer(model)
    state = _rename(weights.outer, names.renamed_outside(model), model)
    for index, layer in enumerate(weights.layers):
        plain = {name: tensor for name, tensor in layer.items() if name not in (QKV, GATE_AND_UP)}
        converted = _rename(plain, table, model)
        if QKV in layer:
            converted.update(names.split_qkv(layer[QKV], model))
        if GATE_AND_UP in layer:
            converted.update(names.split_gate_and_up(layer[GATE_AND_UP]))
        state.update({f"model.layers.{index}.{name}": tensor for name, tensor in converted.items()})
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}


def _rename(
    weights: Mapping[str, torch.Tensor], table: Mapping[str, str], model: ModelConfig
) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        if name not in table:
            raise UserError(f"weight {name!r}: not part of the exported network; is the config that of another model?")
        target = table[name]
        if model.sandwich_norm and tensor.ndim == 1:
            tensor = tensor.float() - 1.0
        elif model.sandwich_norm and name == EMBEDDING:
            tensor = tensor.float() / model.hidden_size**0.5
        renamed[target] = tensor
    return renamed


def _check_state(state: Mapping[str, torch.Tensor], network: PreTrainedModel) -> None:
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"the weights hold nothing for {name!r}; export with the run's own config")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"weights for {name!r} have shape {list(state[name].shape)}, the config makes {list(tensor.shape)}; "
                "export with the run's own config"
            )
    if surplus := sorted(set(state) - set(expected)):
        raise UserError(f"the weights hold {surplus[0]!r}, which the config has not; export with the run's own config")


def _end_of_text(tokenizer_folder: Path, model: ModelConfig) -> int:
    """The tokenizer's end-of-text id; an error when it has more ids than the model has rows."""
    tokenizer = load_tokenizer(tokenizer_folder)
    if len(tokenizer) > model.padded_vocab_size:
        raise UserError(
            f"{tokenizer_folder}: {len(tokenizer)} ids, but the model has {model.padded_vocab_size}; "
            "name the tokenizer that the corpus was made with"
        )
    return int(tokenizer.eos_token_id)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
