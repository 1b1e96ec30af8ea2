"""Where a field that is not known belongs: a typo, a field of another section, or another tool's name for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

# Names of Megatron-LM, Hugging Face, torchtitan, nanoGPT and litgpt for what a field here says.
_STEPS = "in tokens: steps x global_batch_size x seq_length"
_ELSEWHERE: dict[str, dict[str, tuple[str, str]]] = {
    "RunConfig": {
        **dict.fromkeys(("learning_rate", "lr", "max_lr", "base_lr"), ("data.phases.0.peak_lr", "for each phase")),
        **dict.fromkeys(("min_lr", "lr_min", "end_lr"), ("data.phases.0.final_lr", "for each phase")),
        **dict.fromkeys(("lr_decay_style", "lr_scheduler_type"), ("data.phases.0.decay_shape", "for each phase")),
        **dict.fromkeys(
            ("lr_decay_iters", "lr_decay_samples", "decay_steps"),
            ("data.phases.0.decay_fraction", "part of the phase over which the rate decays"),
        ),
        **dict.fromkeys(
            ("warmup_steps", "lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction", "warmup_ratio", "warmup"),
            ("optimizer.warmup_tokens", _STEPS),
        ),
        **dict.fromkeys(
            ("train_iters", "max_steps", "total_steps", "num_steps", "train_samples", "max_iters", "steps"),
            ("train.train_tokens", _STEPS),
        ),
        **dict.fromkeys(("num_train_epochs", "epochs"), ("repeat", "of a dataset in the order recipe")),
        **dict.fromkeys(("batch_size", "train_batch_size"), ("train.global_batch_size", "samples of a step")),
        **dict.fromkeys(
            ("per_device_train_batch_size", "device_batch_size", "local_batch_size"),
            ("train.micro_batch_size", "samples of a pass on a device"),
        ),
        "gradient_accumulation_steps": ("train.global_batch_size", "what one step takes in all"),
        **dict.fromkeys(
            ("max_seq_length", "max_seq_len", "sequence_length", "seq_len", "block_size", "context_length"),
            ("train.seq_length", ""),
        ),
        **dict.fromkeys(("bf16", "fp16", "dtype", "mixed_precision", "params_dtype"), ("train.precision", "")),
        **dict.fromkeys(("tensor_parallel_size", "tp", "tp_size"), ("parallel.tensor_model_parallel_size", "")),
        **dict.fromkeys(("pipeline_parallel_size", "pp", "pp_size"), ("parallel.pipeline_model_parallel_size", "")),
        **dict.fromkeys(("max_grad_norm", "grad_clip", "gradient_clipping"), ("optimizer.clip_grad", "")),
        **dict.fromkeys(("beta1", "betas"), ("optimizer.adam_beta1", "and adam_beta2")),
        "beta2": ("optimizer.adam_beta2", ""),
        **dict.fromkeys(("ema_decay", "ema_beta"), ("ema.decay", "of a step")),
        **dict.fromkeys(("output_dir", "out_dir", "save", "save_dir"), ("run_dir", "")),
        **dict.fromkeys(("load", "pretrained", "model_name_or_path", "resume_from"), ("init_from", "")),
        **dict.fromkeys(("save_interval", "save_steps"), ("checkpoint.save_every_steps", "")),
        "save_total_limit": ("checkpoint.keep_last", ""),
        **dict.fromkeys(("log_interval", "logging_steps"), ("monitor.log_every_steps", "")),
        **dict.fromkeys(("data_path", "train_data", "dataset", "phases"), ("data.phases", "phases of an order recipe")),
        **dict.fromkeys(("n_layer", "n_layers", "num_hidden_layers", "depth"), ("model.num_layers", "")),
        **dict.fromkeys(("n_embd", "d_model", "dim", "hidden_dim"), ("model.hidden_size", "")),
        **dict.fromkeys(("n_head", "n_heads", "num_heads"), ("model.num_attention_heads", "")),
        **dict.fromkeys(("num_key_value_heads", "n_kv_heads"), ("model.num_query_groups", "")),
        "head_dim": ("model.kv_channels", ""),
        **dict.fromkeys(("intermediate_size", "ffn_dim"), ("model.ffn_hidden_size", "")),
        "rope_theta": ("model.rotary_base", ""),
    },
    "OrderRecipe": {
        **dict.fromkeys(("weight", "weights", "ratio", "proportion"), ("phases.0.datasets.0.share", "of each dataset")),
        **dict.fromkeys(("epochs", "upsample", "num_epochs"), ("phases.0.datasets.0.repeat", "of each dataset")),
        **dict.fromkeys(("dataset", "path", "prefix"), ("phases.0.datasets.0.corpus", "a name under corpora")),
        **dict.fromkeys(("top", "fraction", "filter"), ("phases.0.datasets.0.keep", "as keep: top 0.3")),
        **dict.fromkeys(("sequence_length", "seq_length"), ("phases.0.pack", "for best-fit packing only")),
    },
}


def unknown_field(root: type[BaseModel], place: Sequence[str | int]) -> str:
    """The rest of an error about a field that `root` does not have at `place`: what was meant, or what there is."""
    name = str(place[-1])
    section = _section_at(root, place[:-1])
    known = list(section.model_fields)
    paths = list(_paths(root))
    # Dashes are an option's.
    plain = name.lower().replace("-", "_")
    same = [path for path in paths if path.rpartition(".")[2] == plain]
    if plain in known:
        return f"did you mean {plain!r}?"
    if same:
        return f"it belongs elsewhere: write {' or '.join(same[:2])}"
    if plain in (elsewhere := _ELSEWHERE.get(root.__name__, {})):
        path, note = elsewhere[plain]
        return f"here it is {path}{f' ({note})' if note else ''}"
    if near := difflib.get_close_matches(plain, known, n=1, cutoff=0.6):
        return f"did you mean {near[0]!r}?"
    leaves = {path.rpartition(".")[2]: path for path in reversed(paths)}
    if near := difflib.get_close_matches(plain, list(leaves), n=1, cutoff=0.75):
        return f"did you mean {leaves[near[0]]}?"
    return f"known: {', '.join(known)}"


def field_named(root: type[BaseModel], name: str) -> str | None:
    """The dotted name of a field that is given without its section, or by another tool's name; None: there is none."""
    plain = name.lower().replace("-", "_")
    paths = list(_paths(root))
    same = [path for path in paths if plain in (path, path.rpartition(".")[2])]
    return same[0] if same else _ELSEWHERE.get(root.__name__, {}).get(plain, (None, ""))[0]


def nearest_choice(text: object, choices: Sequence[str]) -> str:
    """`; did you mean 'x'?` where a word is nearly one of the choices, else nothing."""
    plain = {choice.lower().replace("_", "-"): choice for choice in choices}
    near = difflib.get_close_matches(str(text).lower().replace("_", "-"), list(plain), n=1, cutoff=0.6)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields; of lists of sections, those of the first one."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner, is_list in sections_of(field.annotation):
            yield from _paths(inner, f"{prefix}{name}.{'0.' if is_list else ''}")


def sections_of(annotation: Any, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The sections in a field's type, and whether they stand in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    for argument in get_args(annotation):
        yield from sections_of(argument, is_list or getattr(annotation, "__origin__", None) is list)


def _section_at(root: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    """The section that a place leads to; numbers of list entries and names of a union's members are passed over."""
    section = root
    for part in place:
        field = section.model_fields.get(str(part))
        inner = [found for found, _ in sections_of(field.annotation)] if field else []
        section = inner[0] if inner else section
    return section
