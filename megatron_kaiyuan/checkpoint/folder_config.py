"""What the config.json of a Hugging Face folder says, as a network of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from megatron_kaiyuan.config import ModelConfig, parse
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Count, Form, require_form
from megatron_kaiyuan.network import switched_weights

Kind = Literal["kaiyuan", "gemma3", "qwen3"]
_KINDS: dict[str, Kind] = {"kaiyuan": "kaiyuan", "gemma3_text": "gemma3", "qwen3": "qwen3"}
_SHAPES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
}
_SWITCHES = ("qk_layernorm", "sandwich_norm", "embedding_norm", "fp32_residual", "fp32_head")
# Fields that change what is computed, and the values with which it is what this network computes.
_NOTHING = (None, False)


class _Rope(Form):
    rope_type: str = "default"
    rope_theta: float | None = None
    full_attention: _Rope | None = None
    sliding_attention: _Rope | None = None


class _Config(Form):
    vocab_size: Count = 0
    head_dim: Count | None = None
    rope_parameters: _Rope | None = None
    rope_theta: float | None = None
    rms_norm_eps: float | None = None
    tie_word_embeddings: bool = False
    final_logit_softcapping: float | None = None
    layer_types: list[str] | None = None
    qk_layernorm: bool = True
    sandwich_norm: bool = True
    embedding_norm: bool = False
    fp32_residual: bool = False
    fp32_head: bool = False


class FolderConfig:
    """The configuration of a folder.

    Attributes:
        kind: the format.
        switches: the fields of `ModelConfig` that add something, as this folder has them.

    Raises:
        UserError: it is missing or damaged, or of another architecture.
    """

    def __init__(self, folder: Path):
        self.folder, self._path = folder, folder / "config.json"
        content: Any = read_json(self._path, "Hugging Face configuration")
        kind = content.get("model_type") if isinstance(content, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            raise UserError(f"{self._path}: model_type {excerpt(kind)}, but only {', '.join(_KINDS)} are this network")
        self.kind = _KINDS[kind]
        self._fields: dict[str, Any] = content
        self._form = require_form(self._path, content, _Config, "copy it again from where it came")
        self.tied = self._form.tie_word_embeddings
        off: dict[str, Any] = {"embedding_norm": False, "fp32_residual": False, "fp32_head": False}
        self.switches: dict[str, Any] = {
            "kaiyuan": {name: getattr(self._form, name) for name in _SWITCHES},
            "gemma3": {"qk_layernorm": True, "sandwich_norm": True, **off},
            "qwen3": {"qk_layernorm": True, "sandwich_norm": False, **off},
        }[self.kind]

    def model(self, recorded: dict[str, Any]) -> ModelConfig:
        """The network, as a configuration of ours.

        Args:
            recorded: the configuration that export wrote, for what config.json has no field for; {}: none.

        Raises:
            UserError: no configuration of ours describes it.
        """
        self._refuse(self._foreign())
        base, cap = self._rotary_base(), None if self.kind == "qwen3" else self._form.final_logit_softcapping
        found = {ours: self._fields.get(theirs) for theirs, ours in _SHAPES.items()}
        found |= {
            "max_position_embeddings": self._fields.get("max_position_embeddings"),
            "vocab_size": self._form.vocab_size,
            "rotary_base": int(base) if base is not None and base == int(base) else base,
            "layernorm_epsilon": self._form.rms_norm_eps,
            "logits_soft_cap": cap,
            **self.switches,
        }
        known = {
            name: value for name, value in recorded.items() if name not in found and name in ModelConfig.model_fields
        }
        model = parse(ModelConfig, {**known, **found}, source=str(self._path))
        size = recorded.get("vocab_size")
        if isinstance(size, int) and 0 < size <= model.vocab_size < size + 128:  # the rest is padding
            return model.model_copy(update={"vocab_size": size})
        return model

    def compare(self, model: ModelConfig) -> list[str]:
        """What a network has that this one has not, or computes otherwise.

        Raises:
            UserError: shapes differ, or the folder uses what this network cannot do.
        """
        differences = [
            f"{theirs} {self._fields.get(theirs)!r}, but model.{ours} {getattr(model, ours)!r}"
            for theirs, ours in _SHAPES.items()
            if self._fields.get(theirs) != getattr(model, ours)
        ]
        if self._form.vocab_size < model.vocab_size:
            differences.append(f"vocab_size {self._form.vocab_size}, but model.vocab_size {model.vocab_size}")
        if self.switches["qk_layernorm"] and not model.qk_layernorm:
            differences.append("norms of queries and keys, but model.qk_layernorm is off")
        differences += [
            f"model.{switch} is on there, off here: its gains would be lost"
            for switch in ("sandwich_norm", "embedding_norm")
            if self.switches[switch] and not getattr(model, switch)
        ]
        self._refuse([*differences, *self._foreign()])
        return self._notes(model)

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            raise UserError(f"{self.folder}: {'; '.join(map(excerpt, differences))}")

    def _foreign(self) -> list[str]:
        """What this network cannot do."""
        fields = self._fields
        names = ["attention_bias", "use_sliding_window", "attn_logit_softcapping", "use_bidirectional_attention"]
        found = [f"{name} {fields[name]!r}" for name in names if fields.get(name, None) not in _NOTHING]
        activation = fields.get("hidden_activation" if self.kind == "gemma3" else "hidden_act", "silu")
        if activation != "silu":
            found.append(f"activation {activation!r}, but this network's is silu")
        found += [f"layers of {kind!r}" for kind in sorted({*(self._form.layer_types or ())} - {"full_attention"})]
        if self.kind == "gemma3" and fields.get("query_pre_attn_scalar") != self._form.head_dim:
            found.append(f"query_pre_attn_scalar {fields.get('query_pre_attn_scalar')!r}, not the size of a head")
        if self.kind == "gemma3" and self.tied:
            found.append("an embedding that is also the head")
        return found

    def _rotary_base(self) -> float | None:
        rope = self._form.rope_parameters or _Rope()
        ropes = [one for one in (rope.full_attention, rope.sliding_attention) if one] or [rope]
        if any(one.rope_type != "default" for one in ropes) or self._fields.get("rope_scaling"):
            raise UserError(f"{self.folder}: scaled rotary embeddings, which this network has not")
        return self._form.rope_theta if ropes[0].rope_theta is None else ropes[0].rope_theta

    def _notes(self, model: ModelConfig) -> list[str]:
        notes, form = [], self._form
        if (base := self._rotary_base()) != model.rotary_base:
            notes.append(f"rope_theta was {base!r} there, model.rotary_base is {model.rotary_base}")
        if form.rms_norm_eps != model.layernorm_epsilon:
            notes.append(f"rms_norm_eps was {form.rms_norm_eps!r} there, is {model.layernorm_epsilon} here")
        theirs = switched_weights(model.model_copy(update=self.switches))
        notes += [
            f"{self.kind} has no weights of model.{switch}: they start with gain {weights[0].initial:g}, so that the "
            "network computes something else at first"
            for switch, weights in switched_weights(model).items()
            if switch not in theirs
        ]
        cap = None if self.kind == "qwen3" else form.final_logit_softcapping
        if cap is None and model.logits_soft_cap is not None:
            notes.append(f"{self.kind}'s logits are not capped, these are, at {model.logits_soft_cap}")
        elif cap != model.logits_soft_cap:
            notes.append(f"logits were capped at {cap} there, at {model.logits_soft_cap} here")
        notes += [
            f"model.{name} was {self.switches[name]!r} there, is {getattr(model, name)!r} here"
            for name in ("fp32_residual", "fp32_head")
            if self.switches[name] != getattr(model, name)
        ]
        if self.tied:
            notes.append("the embedding is also the head there; here each goes its own way from the same values")
        if form.vocab_size != model.padded_vocab_size:
            rows = min(form.vocab_size, model.padded_vocab_size)
            notes.append(f"{rows} of {form.vocab_size} rows of the vocabulary are taken")
        return notes
