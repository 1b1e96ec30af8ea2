"""What of a run may change when it is resumed, and what makes it another run.

Structural: the network's shape and function, the vocabulary, the precision. Everything else may change,
and is told: learning rates, batch, sequence length, layout of ranks, logging, checkpoints, where things lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from megatron_kaiyuan.config.schema import RunConfig

# Parts of `model` that say how it is named, drawn or bounded, not what it computes.
_FREE_MODEL_FIELDS = (
    "preset",
    "max_position_embeddings",
    "init_method_std",
    "embedding_init_method_std",
    "post_norm_initial_gain",
)
# Where the run is, which the caller knows, and what counts for its first start only.
_NOT_COMPARED = ("run_dir", "init_from")
_MISSING = object()


@dataclass(frozen=True)
class Change:
    """One field that is not what it was."""

    field: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field} was {self.was!r}, is {self.now!r}"


def compare(saved: dict[str, Any], current: dict[str, Any]) -> list[Change]:
    """Fields of two resolved configurations that differ, in the order of the current one.

    A configuration that was saved before a field existed has that field's default.
    """
    was, now = flatten(_completed(saved)), flatten(_completed(current))
    names = [name for name in dict.fromkeys([*now, *was]) if name not in _NOT_COMPARED]
    pairs = ((name, was.get(name, _MISSING), now.get(name, _MISSING)) for name in names)
    return [
        Change(name, None if before is _MISSING else before, None if after is _MISSING else after)
        for name, before, after in pairs
        if before != after
    ]


def is_structural(change: Change) -> bool:
    """Whether a run with this change is another run."""
    section, _, name = change.field.partition(".")
    return change.field == "train.precision" or (section == "model" and name not in _FREE_MODEL_FIELDS)


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


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    try:
        return RunConfig.model_validate(saved).model_dump(mode="json")
    except ValidationError:
        # Of a version whose fields are not all known here.
        return saved
