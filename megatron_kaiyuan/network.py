"""The network on one page, without torch: every weight, its shape, how tensor-parallel ranks cut it, its other names.

Parameter counts, FLOPs, planned memory, the monitor's kinds of weights, import and export follow from this list. A norm
or a matrix that is added to `model/spec.py` is added here, and nowhere else by name.

Shapes: H hidden, F ffn, V padded vocabulary, N heads, G query groups, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from megatron_kaiyuan.config import ModelConfig, WeightKind

# Where a layer's weights stand in megatron-core's names, layers stacked or numbered.
LAYERS = "decoder.layers."


@dataclass(frozen=True)
class Weight:
    """One weight of a layer, or outside the layers.

    Attributes:
        name: megatron-core's, within the layer where it is of one.
        kind: the monitor's and the comparison's group; gains of a layer are one, "norms".
        shape: whole, of a network that is not cut.
        cut_axis: the axis that tensor-parallel ranks share; None: each rank has all of it.
        huggingface: names of the weights of an exported folder that make it up, in order.
        switch: the field of `model` that adds it; "": every network has it.
        initial: the value of all elements of a fresh one; None: they are drawn.
        stock: transformers' own classes have it too, not only the class that `export --format kaiyuan` adds.
    """

    name: str
    kind: WeightKind
    shape: tuple[int, ...]
    cut_axis: int | None
    huggingface: tuple[str, ...] = ()
    switch: str = ""
    initial: float | None = None
    stock: bool = True

    @property
    def size(self) -> int:
        """Elements of the whole."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether a token is multiplied by it, or looked up in it; else it is a gain."""
        return len(self.shape) == 2

    def elements(self, tensor_ranks: int) -> int:
        """Elements on one of so many tensor-parallel ranks."""
        return self.size if self.cut_axis is None else self.size // tensor_ranks


EMBEDDING, EMBEDDING_NORM = "embedding.word_embeddings.weight", "embedding.norm.weight"
FINAL_NORM, HEAD = "decoder.final_layernorm.weight", "output_layer.weight"
QKV, PROJ = "self_attention.linear_qkv.weight", "self_attention.linear_proj.weight"
GATE_AND_UP, DOWN = "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"
POST_NORM = "post_norm"
# Fields of `model` that change what is computed from the same weights.
FUNCTION_FIELDS = ("rotary_base", "layernorm_epsilon", "logits_soft_cap")
# What earlier versions called modules, in their checkpoints and capsules.
_EARLIER = {
    f"self_attention.linear_proj.{POST_NORM}": f"self_attention.{POST_NORM}",
    f"mlp.linear_fc2.{POST_NORM}": f"mlp.{POST_NORM}",
}


def embedding_weights(model: ModelConfig) -> Iterator[Weight]:
    """What the first pipeline stage has before its layers."""
    shape = (model.padded_vocab_size, model.hidden_size)
    yield Weight(EMBEDDING, "embedding", shape, 0, ("model.embed_tokens.weight",))
    if model.embedding_norm:
        name = ("model.embed_norm.weight",)
        yield Weight(EMBEDDING_NORM, "embedding_norm", (model.hidden_size,), None, name, "embedding_norm", 1.0, False)


def layer_weights(model: ModelConfig) -> Iterator[Weight]:
    """Of one layer, in the order of megatron-core's `named_parameters()`.

    Names are those of transformers' Gemma 3 with sandwich norm and of its Qwen 3 without. There,
    `post_attention_layernorm` is the norm before the MLP.
    """
    hidden, ffn, size = model.hidden_size, model.ffn_hidden_size, model.kv_channels
    query, keys = model.num_attention_heads * size, model.num_query_groups * size

    def gain(name: str, elements: int, theirs: str, switch: str = "", initial: float = 1.0) -> Weight:
        return Weight(name, "norms", (elements,), None, (theirs,) if theirs else (), switch, initial)

    def closing(sub_layer: str, theirs: str) -> Weight:
        name = f"{sub_layer}.{POST_NORM}.weight"
        return gain(name, hidden, theirs, "sandwich_norm", model.post_norm_initial_gain)

    def projections(inside: str, *names: str) -> tuple[str, ...]:
        return tuple(f"{inside}.{name}_proj.weight" for name in names)

    yield gain("input_layernorm.weight", hidden, "input_layernorm.weight")
    yield Weight(PROJ, "proj", (hidden, query), 1, projections("self_attn", "o"))
    if model.sandwich_norm:
        yield closing("self_attention", "post_attention_layernorm.weight")
    yield Weight(QKV, "qkv", (query + 2 * keys, hidden), 0, projections("self_attn", "q", "k", "v"))
    if model.qk_layernorm:
        for name in "qk":
            yield gain(f"self_attention.{name}_layernorm.weight", size, f"self_attn.{name}_norm.weight", "qk_layernorm")
    before_mlp = "pre_feedforward_layernorm" if model.sandwich_norm else "post_attention_layernorm"
    yield gain("pre_mlp_layernorm.weight", hidden, f"{before_mlp}.weight")
    yield Weight(GATE_AND_UP, "fc1", (2 * ffn, hidden), 0, projections("mlp", "gate", "up"))
    yield Weight(DOWN, "fc2", (hidden, ffn), 1, projections("mlp", "down"))
    if model.sandwich_norm:
        yield closing("mlp", "post_feedforward_layernorm.weight")


def head_weights(model: ModelConfig) -> Iterator[Weight]:
    """What the last pipeline stage has after its layers."""
    yield Weight(FINAL_NORM, "final_norm", (model.hidden_size,), None, ("model.norm.weight",), initial=1.0)
    yield Weight(HEAD, "head", (model.padded_vocab_size, model.hidden_size), 0, ("lm_head.weight",))


def outer_weights(model: ModelConfig) -> list[Weight]:
    """Those outside the layers."""
    return [*embedding_weights(model), *head_weights(model)]


def count_parameters(model: ModelConfig) -> int:
    """Of the whole network, padded vocabulary included."""
    outer, layer = sum(w.size for w in outer_weights(model)), sum(w.size for w in layer_weights(model))
    return outer + model.num_layers * layer


def places(model: ModelConfig) -> dict[str, int]:
    """Kinds of weights, and in how many places each one is: once a layer, or once."""
    found = {weight.kind: 1 for weight in outer_weights(model)}
    found |= {weight.kind: model.num_layers for weight in layer_weights(model)}
    return {kind: found[kind] for kind in get_args(WeightKind) if kind in found}


def switched_weights(model: ModelConfig) -> dict[str, list[Weight]]:
    """Fields of `model` that are on and add weights, and the weights that each one adds; one layer's stand for all."""
    found: dict[str, list[Weight]] = {}
    for weight in (*outer_weights(model), *layer_weights(model)):
        if weight.switch:
            found.setdefault(weight.switch, []).append(weight)
    return found


def not_in_transformers(model: ModelConfig) -> str | None:
    """The field of `model` that makes a network of which no class of transformers is the equal; None: there is one."""
    for switch, weights in switched_weights(model).items():
        if not all(weight.stock for weight in weights):
            return switch
    return None


def weight_of(name: str, model: ModelConfig) -> Weight:
    """A weight by its name in the whole network, `decoder.layers.` with or without a number.

    Raises:
        KeyError: the network has no such weight.
    """
    if not name.startswith(LAYERS):
        return {weight.name: weight for weight in outer_weights(model)}[name]
    inner = name.removeprefix(LAYERS)
    number, _, rest = inner.partition(".")
    inner = rest if number.isdigit() else inner
    return {weight.name: weight for weight in layer_weights(model)}[inner]


def kind_of(name: str, model: ModelConfig) -> WeightKind:
    """The kind of a weight by its name, see `weight_of`."""
    return weight_of(name, model).kind


def current_name(name: str) -> str:
    """The name of a weight, of its optimizer state or of a module, of this version or an earlier one, as it is now."""
    for earlier, now in _EARLIER.items():
        name = name.replace(earlier, now)
    return name
