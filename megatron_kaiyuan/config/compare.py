"""What a change of a field means for a run that is resumed: each field of the schema has one class.

`tests/train/test_resume_fields.py` walks the schema: a field without a class fails there, and each class is proven.
A field of `model` makes another network unless it is listed here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from megatron_kaiyuan.config.model import ModelConfig
from megatron_kaiyuan.config.schema import RunConfig
from megatron_kaiyuan.errors import excerpt


class AtResume(enum.Enum):
    """What a start does with a field that is not what the checkpoint was written with."""

    ANOTHER_RUN = "it makes another network, or other numbers: refused"
    FIRST_START = "it counts for the first start only: refused"
    TAKEN = "the steps that follow are computed with it"
    NO_EFFECT = "it changes no result: how the run is computed, recorded and saved"
    NOT_COMPARED = "where the run lies, and init_from, which a start reports by itself"


_FIELDS: dict[AtResume, dict[str, str]] = {
    AtResume.ANOTHER_RUN: {
        "train": "precision",
    },
    AtResume.FIRST_START: {
        "model": "init_method_std embedding_init_method_std post_norm_initial_gain",
        "train": "seed",
        "optimizer": "initial_loss_scale",
    },
    AtResume.TAKEN: {
        "data.phases": "peak_lr final_lr decay_fraction decay_shape",
        "data": "reset_attention_mask eod_mask_loss",
        "train": "seq_length global_batch_size train_tokens z_loss",
        "optimizer": "adam_beta1 adam_beta2 adam_eps weight_decay wd_mult lr_mult decoupled_lr clip_grad qk_clip_tau "
        "warmup_tokens schedule_tokens min_loss_scale loss_scale_window hysteresis",
        "ema": "decay every_steps",
        "faults": "on_bad_step spike_zscore spike_window max_skips_in_a_row max_rollbacks rollback_batches",
    },
    AtResume.NO_EFFECT: {
        "": "platform mindspeed",
        "data.phases": "path",  # the phases are compared by what they hold
        "data": "reset_position_ids",  # rotary embeddings know distances only
        "model": "preset max_position_embeddings",
        "parallel": "tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size "
        "context_parallel_size sequence_parallel use_distributed_optimizer overlap_grad_reduce overlap_param_gather "
        "recompute_granularity recompute_modules timeout_minutes",
        "train": "micro_batch_size",
        "ema": "device",
        "backend": "norm swiglu rope loss attention document_attention weight_gradient passes",
        "checkpoint": "save_every_steps save_every_minutes asynchronous keep_last keep_every_steps keep_every_tokens "
        "preempt_deadline_seconds strict",
        "faults": "hang_timeout_seconds",
        "monitor": "log_every_steps peak_tflops profile_steps activations_every_steps headroom_warning_bits "
        "overflow_capsules overflow_capsule_scale notify_command notify_events notify_timeout_seconds prometheus_file "
        "tensorboard wandb wandb_project swanlab swanlab_project",
        "validation": "corpora weights every_steps every_tokens tokens",
        "samples": "prompts tokenizer every_steps max_new_tokens do_sample temperature top_p repetition_penalty seed",
        "tasks": "names tokenizer include_path every_steps every_tokens limit num_fewshot batch_size",
    },
    AtResume.NOT_COMPARED: {"": "run_dir init_from"},
}
AT_RESUME = {
    f"{section}.{name}" if section else name: at_resume
    for at_resume, sections in _FIELDS.items()
    for section, names in sections.items()
    for name in names.split()
}
for _name in ModelConfig.model_fields:
    AT_RESUME.setdefault(f"model.{_name}", AtResume.ANOTHER_RUN)
_REFUSED = (AtResume.ANOTHER_RUN, AtResume.FIRST_START)
_MISSING = object()


@dataclass(frozen=True)
class Change:
    """One field that is not what it was."""

    field: str
    was: Any
    now: Any

    def __str__(self) -> str:
        field, was, now = (excerpt(value, 400) for value in (self.field, repr(self.was), repr(self.now)))
        return f"{field} was {was}, is {now}"


def compare(saved: dict[str, Any], current: dict[str, Any]) -> list[Change]:
    """Fields of two resolved configurations that differ, in the order of the current one.

    A configuration that was saved before a field existed has that field's default, or what was done then.
    """
    was, now = flatten(completed(saved)), flatten(completed(current))
    names = [name for name in dict.fromkeys([*now, *was]) if at_resume(name) is not AtResume.NOT_COMPARED]
    pairs = ((name, was.get(name, _MISSING), now.get(name, _MISSING)) for name in names)
    return [
        Change(name, None if before is _MISSING else before, None if after is _MISSING else after)
        for name, before, after in pairs
        if before != after
    ]


def is_refused(change: Change) -> bool:
    """Whether a run cannot be resumed with this change."""
    return at_resume(change.field) in _REFUSED


def at_resume(field: str) -> AtResume:
    """The class of a field by its dotted name, numbers of list entries included.

    A field that only another version knows is refused when it belongs to the network, else taken.
    """
    name = ".".join(part for part in field.split(".") if not part.isdigit())
    unknown = AtResume.ANOTHER_RUN if name.startswith("model.") else AtResume.TAKEN
    return AT_RESUME.get(name, unknown)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted names."""
    if isinstance(values, dict):
        parts = values.items()
    elif isinstance(values, list):
        parts = enumerate(values)  # type: ignore[assignment]
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in parts:
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration with every field; one that was saved before a field existed has its default."""
    optimizer, train = (saved.get(section, {}) for section in ("optimizer", "train"))
    if isinstance(optimizer, dict) and isinstance(train, dict) and "schedule_tokens" not in optimizer:
        # Where the run was to stop used to be where its schedule ended.
        stop = train.get("train_tokens")
        saved = {**saved, "optimizer": {**optimizer, "schedule_tokens": stop or None}}
    try:
        return RunConfig.model_validate(saved).model_dump(mode="json")
    except ValidationError:
        # Of a version whose fields are not all known here.
        return saved
