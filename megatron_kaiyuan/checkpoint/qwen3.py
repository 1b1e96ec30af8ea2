"""Weights out of a Hugging Face Qwen3 folder, read piece by piece from its safetensors files.

Qwen3 is this network without the norms that close a sub-layer and without the soft cap on the logits. Nothing of the
folder is executed: config.json and an index are JSON, safetensors files hold numbers only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError, excerpt, require
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Count, FileName, Form, require_form
from megatron_kaiyuan.model import names
from megatron_kaiyuan.network import EMBEDDING, GATE_AND_UP, HEAD, QKV, layer_weights, outer_weights, switched_weights

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_VOCABULARY = (EMBEDDING, HEAD)
# Names of a layer's weights are Qwen3's with it, and Gemma 3's else.
_QWEN3 = {"sandwich_norm": False}
_SHAPES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
}


class _Rope(Form):
    rope_type: str = "default"
    rope_theta: float | None = None


class _Config(Form):
    vocab_size: Count = 0
    rope_parameters: _Rope | None = None
    rope_theta: float | None = None
    rms_norm_eps: float | None = None
    tie_word_embeddings: bool = False


class _Index(Form):
    weight_map: dict[str, FileName]


class Qwen3Folder:
    """A model folder as transformers writes it.

    Raises:
        UserError: it is of another architecture, or files are missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._safetensors = require("safetensors", extra="eval", purpose="init_from a Hugging Face folder")
        self.config: dict[str, Any] = read_json(folder / "config.json", "Hugging Face configuration")
        if not isinstance(self.config, dict) or self.config.get("model_type") != "qwen3":
            kind = self.config.get("model_type") if isinstance(self.config, dict) else None
            raise UserError(f"{folder / 'config.json'}: model_type {excerpt(kind)}, but only qwen3 can be started from")
        require_form(folder / "config.json", self.config, _Config, "copy it again from where it came")
        self._files = self._list_files()
        self._open: dict[Path, Any] = {}

    def compare(self, model: ModelConfig) -> list[str]:
        """What this network has that Qwen3 has not, or computes otherwise.

        Raises:
            UserError: shapes differ, or the folder uses what this network cannot do.
        """
        theirs = {**self.config, "rope_theta": self._rotary_base()}
        differences = [
            f"{their_name} {theirs.get(their_name)!r}, but model.{our_name} {getattr(model, our_name)!r}"
            for their_name, our_name in _SHAPES.items()
            if theirs.get(their_name) != getattr(model, our_name)
        ]
        if theirs.get("vocab_size", 0) < model.vocab_size:
            differences.append(f"vocab_size {theirs.get('vocab_size')}, but model.vocab_size {model.vocab_size}")
        if not model.qk_layernorm:
            differences.append("norms of queries and keys, but model.qk_layernorm is off")
        differences += [
            f"{name} {theirs[name]!r}" for name in ("attention_bias", "use_sliding_window") if theirs.get(name)
        ]
        if differences:
            raise UserError(f"init_from: {self.folder}: {'; '.join(map(excerpt, differences))}")
        return self._notes(theirs, model)

    def weight(self, name: str) -> torch.Tensor:
        """A weight by its name in the folder, whole.

        Raises:
            UserError: it is missing, or its file is damaged.
        """
        if name not in self._files:
            raise UserError(f"init_from: {self.folder}: holds no weight {name!r}")
        path = self._files[name]
        try:
            if path not in self._open:
                self._open[path] = self._safetensors.safe_open(str(path), framework="pt")
            return self._open[path].get_tensor(name)
        except (self._safetensors.SafetensorError, OSError) as error:
            raise UserError(f"init_from: {path}: cannot be read ({error})") from error

    def megatron_weight(self, name: str, model: ModelConfig) -> torch.Tensor | None:
        """A weight by its name in megatron-core, layers numbered over the whole network; None: Qwen3 has no such."""
        qwen3 = model.model_copy(update=_QWEN3)
        if layer := _LAYER.fullmatch(name):
            known = {weight.name: weight for weight in layer_weights(qwen3)}
            prefix, inner = f"model.layers.{layer[1]}.", layer[2]
        else:
            known = {weight.name: weight for weight in outer_weights(qwen3)}
            prefix, inner = "", name
        theirs = known[inner].huggingface if inner in known else ()
        if not theirs:
            return None
        if inner == HEAD and theirs[0] not in self._files and self.config.get("tie_word_embeddings"):
            theirs = known[EMBEDDING].huggingface
        parts = {part: self.weight(prefix + part) for part in theirs}
        if inner == QKV:
            return names.join_qkv(parts, model)
        return names.join_gate_and_up(parts) if inner == GATE_AND_UP else parts[theirs[0]]

    def _list_files(self) -> dict[str, Path]:
        """Weight names and the files that hold them."""
        if (self.folder / _INDEX).is_file():
            index = read_json(self.folder / _INDEX, "index of the weights")
            weights = require_form(self.folder / _INDEX, index, _Index, "copy it again").weight_map
            if any("/" in file for file in weights.values()):
                raise UserError(f"{self.folder / _INDEX}: has no weight_map of files in this folder")
            return {name: self.folder / file for name, file in weights.items()}
        path = self.folder / _SINGLE
        if not path.is_file():
            raise UserError(f"init_from: {self.folder}: neither {_SINGLE} nor {_INDEX} is there; pickles are not read")
        try:
            with self._safetensors.safe_open(str(path), framework="pt") as weights:
                return {name: path for name in weights.keys()}  # noqa: SIM118 - a handle, not a mapping
        except (self._safetensors.SafetensorError, OSError) as error:
            raise UserError(f"init_from: {path}: cannot be read ({error})") from error

    def _rotary_base(self) -> float | None:
        rope = self.config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default" or self.config.get("rope_scaling"):
            raise UserError(f"init_from: {self.folder}: scaled rotary embeddings, which this network has not")
        return rope.get("rope_theta", self.config.get("rope_theta"))

    def _notes(self, theirs: dict[str, Any], model: ModelConfig) -> list[str]:
        notes = []
        if theirs["rope_theta"] != model.rotary_base:
            notes.append(f"rope_theta was {theirs['rope_theta']!r} there, model.rotary_base is {model.rotary_base}")
        if theirs.get("rms_norm_eps") != model.layernorm_epsilon:
            notes.append(f"rms_norm_eps was {theirs.get('rms_norm_eps')!r} there, is {model.layernorm_epsilon} here")
        ours, also_theirs = switched_weights(model), switched_weights(model.model_copy(update=_QWEN3))
        notes += [
            f"Qwen3 has no weights of model.{switch}: they start with gain {weights[0].initial:g}, so that the network "
            "computes something else at first"
            for switch, weights in ours.items()
            if switch not in also_theirs or not all(weight.huggingface for weight in weights)
        ]
        if model.logits_soft_cap is not None:
            notes.append(f"Qwen3's logits are not capped, these are, at {model.logits_soft_cap}")
        if theirs.get("tie_word_embeddings"):
            notes.append("the embedding is also the head there; here each goes its own way from the same values")
        if theirs["vocab_size"] != model.padded_vocab_size:
            rows = min(theirs["vocab_size"], model.padded_vocab_size)
            notes.append(f"{rows} of {theirs['vocab_size']} rows of the vocabulary are taken")
        return notes


@torch.no_grad()
def copy_into(network: GPTModel, folder: Qwen3Folder, model: ModelConfig) -> None:
    """Fill a part of the network.

    Raises:
        UserError: a weight is missing, damaged or of another shape.
    """
    first_layer = network.decoder.layers[0].layer_number - 1 if len(network.decoder.layers) else 0
    for name, parameter in network.named_parameters():
        layer = _LAYER.fullmatch(name)
        whole_name = f"decoder.layers.{first_layer + int(layer[1])}.{layer[2]}" if layer else name
        weight = folder.megatron_weight(whole_name, model)
        if weight is not None:
            part = _my_part(whole_name, weight, parameter, model)
            # Fewer rows: the padding of the vocabulary, which keeps its initial values.
            rows = len(part) if whole_name in _VOCABULARY else len(parameter)
            if part.shape != parameter[:rows].shape:
                raise UserError(
                    f"init_from: {folder.folder}: weights for {whole_name} make {list(part.shape)} of each rank, "
                    f"{list(parameter.shape)} are wanted"
                )
            parameter[:rows].copy_(part)


def _my_part(name: str, weight: torch.Tensor, parameter: torch.nn.Parameter, model: ModelConfig) -> torch.Tensor:
    """What this tensor-parallel rank holds of a whole weight; fewer rows where the vocabulary is padded."""
    rank, ranks = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    if name in _VOCABULARY:
        rows = model.padded_vocab_size // ranks
        return weight[: model.padded_vocab_size][rank * rows : (rank + 1) * rows]
    if not getattr(parameter, "tensor_model_parallel", False):
        return weight
    if name.endswith(GATE_AND_UP):
        return torch.cat([half.chunk(ranks)[rank] for half in weight.chunk(2)])
    return weight.chunk(ranks, dim=parameter.partition_dim)[rank]  # type: ignore[attr-defined]
