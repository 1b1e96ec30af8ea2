"""What changed from one checkpoint to another: configuration, progress, and how far the weights moved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan.checkpoint.load import OPTIMIZER_PREFIX, Stored, load_common, removed_meanwhile
from megatron_kaiyuan.checkpoint.verify import verify
from megatron_kaiyuan.config.compare import Change, compare, flatten
from megatron_kaiyuan.errors import UserError

_STACKED = "decoder.layers."


@dataclass(frozen=True)
class Moved:
    """How far the weights of a group moved.

    Attributes:
        relative: norm of the difference of the whole group, by the norm of the first.
        largest: the weight of the group (of one layer) that moved most in that measure.
        largest_relative: how far that one did.
        largest_entry: the largest absolute difference of a single number in the group.
    """

    group: str
    relative: float
    largest: str
    largest_relative: float
    largest_entry: float


@dataclass(frozen=True)
class Difference:
    """Between two checkpoints; `only_in_one` names weights of other shapes too."""

    config: list[Change]
    progress: list[Change]
    versions: list[Change]
    weights: list[Moved]
    only_in_one: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """One line."""
        moved = max(self.weights, key=lambda moved: moved.relative, default=None)
        most = f"most moved: {moved.group}, by {moved.relative:.2%}" if moved else "no weight in both"
        return f"{len(self.config)} fields of the configuration differ, {most}"

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [f"progress: {change}" for change in self.progress]
        lines += [f"config: {change}" for change in self.config]
        lines += [f"versions: {change}" for change in self.versions]
        lines += [f"weights: {name} is not in both, or of another shape" for name in self.only_in_one]
        lines += [
            f"weights: {moved.group} moved by {moved.relative:.2%}, most {moved.largest} by "
            f"{moved.largest_relative:.2%}; largest change of a number {moved.largest_entry:.3g}"
            for moved in self.weights
        ]
        return lines


def difference(first: Path, second: Path) -> Difference:
    """Compare two checkpoints; one process, process groups initialised. One weight of each is in memory at a time.

    Raises:
        UserError: one of them is missing or damaged.
    """
    for folder in (first, second):
        if not folder.is_dir():
            raise UserError(f"{folder}: checkpoint not found")
        with removed_meanwhile(folder):
            verify(folder)
    was, now = load_common(first), load_common(second)
    weights, only_in_one = _compare_weights(Stored(first), Stored(second))
    return Difference(
        config=compare(was["run"]["config"], now["run"]["config"]),
        progress=_changes(was.get("progress"), now.get("progress")),
        versions=_changes(was["run"].get("versions"), now["run"].get("versions")),
        weights=weights,
        only_in_one=only_in_one,
    )


def group_of(name: str) -> str:
    """The part of the network that a weight belongs to."""
    for part, group in (
        ("norm", "norms"),
        ("word_embeddings", "embedding"),
        ("output_layer", "head"),
        ("self_attention", "attention"),
        ("mlp", "mlp"),
    ):
        if part in name:
            return group
    return "other"


def _changes(was: Any, now: Any) -> list[Change]:
    before, after = flatten(was or {}), flatten(now or {})
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    return [Change(name, before.get(name), after.get(name)) for name in names]


def _compare_weights(first: Stored, second: Stored) -> tuple[list[Moved], list[str]]:
    ours, theirs = _shapes(first), _shapes(second)
    alike = [name for name in ours if ours[name] == theirs.get(name)]
    groups: dict[str, list[tuple[str, float, float, float]]] = {}
    for name in alike:
        before, after = (checkpoint.read([name])[name].double() for checkpoint in (first, second))
        for part, a, b in _layers(name, before, after):
            distance = b.sub_(a)
            figures = (distance.norm().item(), a.norm().item(), distance.abs().max().item() if a.numel() else 0.0)
            groups.setdefault(group_of(name), []).append((part, *figures))
    moved = [_moved(group, parts) for group, parts in groups.items()]
    return moved, [name for name in dict.fromkeys([*ours, *theirs]) if name not in alike]


def _moved(group: str, parts: list[tuple[str, float, float, float]]) -> Moved:
    def relative(distance: float, norm: float) -> float:
        return distance / norm if norm else float(distance > 0)

    largest = max(parts, key=lambda part: relative(part[1], part[2]))
    distance, norm = math.hypot(*(part[1] for part in parts)), math.hypot(*(part[2] for part in parts))
    return Moved(
        group=group,
        relative=relative(distance, norm),
        largest=largest[0],
        largest_relative=relative(largest[1], largest[2]),
        largest_entry=max(part[3] for part in parts),
    )


def _layers(name: str, before: torch.Tensor, after: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Layers that are stacked along a first axis, each with its number; else the weight itself."""
    if name.startswith(_STACKED) and not name.removeprefix(_STACKED).split(".")[0].isdigit():
        for index in range(len(before)):
            yield f"{_STACKED}{index}.{name.removeprefix(_STACKED)}", before[index], after[index]
    else:
        yield name, before, after


def _shapes(checkpoint: Stored) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.global_shape)
        for name, value in checkpoint.tensors.items()
        if not name.startswith(OPTIMIZER_PREFIX)
    }
