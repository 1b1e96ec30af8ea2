"""What is asked of a queue: runs with names, and the file that lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import Count, Form, PathText, require_form
from megatron_kaiyuan.outputs import identity_of

FORMAT = "kaiyuan-run-list"
# Columns of a table that are not a label's.
COLUMNS = ("name", "fingerprint", "steps", "tokens", "parameters", "seconds", "training_seconds")
BITS_PER_BYTE = "bits_per_byte/"
# Before the name of a task, where measures of domains and of tasks stand together.
TASK = "task:"


class _Row(Form):
    name: str
    recipe: PathText
    overrides: list[str]
    labels: dict[str, str | int | float | bool | None]
    held_out: dict[str, PathText]
    held_out_tokens: Count | None
    tasks: dict[str, PathText] = {}
    tokenizer: PathText | None = None


class _List(Form):
    runs: list[_Row]


@dataclass(frozen=True)
class Run:
    """A training run that is to be measured on held-out text.

    Attributes:
        name: what to call it, such as "edu/0.30-0.32/seed=1".
        overrides: `section.field=value`, applied to the recipe; `run_dir` is the queue's own.
        labels: columns of its row in the table: strings, numbers, truth values or None.
        held_out: corpus prefixes by domain.
        held_out_tokens: predicted tokens at most, in equal shares for the domains; None: all.
        tasks: files of `megatron_kaiyuan.evaluate.cloze` by the name of the task.
        tokenizer: folder of the tokenizer that tasks are cut with; None: there are none.
    """

    name: str
    recipe: Path
    overrides: tuple[str, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    held_out: Mapping[str, Path] = field(default_factory=dict)
    held_out_tokens: int | None = 100_000
    tasks: Mapping[str, Path] = field(default_factory=dict)
    tokenizer: Path | None = None


def write_list(folder: Path, runs: Sequence[Run]) -> Path:
    """Write a list of runs into the folder of a queue; the same runs are the same file.

    Raises:
        UserError: there is no run, two have one name, or a label has the name of a column.
    """
    _check(runs)
    rows = [
        {
            **asdict(run),
            "recipe": str(run.recipe),
            "held_out": {domain: str(prefix) for domain, prefix in run.held_out.items()},
            "tasks": {name: str(path) for name, path in run.tasks.items()},
            "tokenizer": None if run.tokenizer is None else str(run.tokenizer),
        }
        for run in runs
    ]
    path = folder / "lists" / f"{identity_of(rows)[:16]}.json"
    write_sealed_json(path, {"format": FORMAT, "runs": rows})
    return path


def read_list(path: Path) -> list[Run]:
    """The runs of a list.

    Raises:
        UserError: the file is missing or damaged.
    """
    listed = read_sealed_json(path, "list of runs")
    if listed.get("format") != FORMAT:
        raise UserError(f"{path}: is not a list of runs; name a file in the folder `lists` of a queue")
    require_form(path, listed, _List, "write the list again")
    return [
        Run(
            name=row["name"],
            recipe=Path(row["recipe"]),
            overrides=tuple(row["overrides"]),
            labels=row["labels"],
            held_out={domain: Path(prefix) for domain, prefix in row["held_out"].items()},
            held_out_tokens=row["held_out_tokens"],
            tasks={name: Path(path) for name, path in row.get("tasks", {}).items()},
            tokenizer=Path(row["tokenizer"]) if row.get("tokenizer") else None,
        )
        for row in listed["runs"]
    ]


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise UserError("queue: there is no run to do; name at least one")
    seen: set[str] = set()
    for run in runs:
        if run.name in seen:
            raise UserError(f"queue: two runs are called {run.name!r}; give each a name of its own")
        seen.add(run.name)
        if run.tasks and run.tokenizer is None:
            raise UserError(f"run {run.name!r}: tasks need a tokenizer; name its folder")
        taken = [label for label in run.labels if label in COLUMNS or label.startswith(BITS_PER_BYTE)]
        if taken:
            raise UserError(f"run {run.name!r}: label {taken[0]!r} is a column of the table; rename the label")
        if any(override.partition("=")[0].strip() == "run_dir" for override in run.overrides):
            raise UserError(f"run {run.name!r}: run_dir is chosen by the queue; leave it out of the overrides")
