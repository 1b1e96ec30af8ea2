"""Tasks of lm-eval that small runs are measured on beside held-out text: from a recipe's fields to a queue's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, model_validator

from megatron_kaiyuan.config import Section
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.task_selection import TaskSelection, check_name
from megatron_kaiyuan.research.queue.request import TASK

if TYPE_CHECKING:
    from megatron_kaiyuan.evaluate.cloze import ClozeTask, Lengths

TaskName = Annotated[str, AfterValidator(check_name)]


class TaskFields(Section):
    """Fields of a recipe whose runs may be measured on tasks."""

    tasks: Annotated[
        list[TaskName], Field(description="of lm-eval, measured as bits per byte of the right answers' text")
    ] = []
    include_path: Annotated[Path | None, Field(description="folder with YAML files of tasks besides lm-eval's own")] = (
        None
    )
    num_fewshot: Annotated[int | None, Field(ge=0, description="examples before each question; null: the task's")] = (
        None
    )
    task_limit: Annotated[int | None, Field(gt=0, description="documents of each task, its first; null: all")] = 500
    tokenizer: Annotated[
        Path | None, Field(description="folder with the tokenizer.json of the corpora; needed for tasks")
    ] = None

    @model_validator(mode="after")
    def _check_tasks(self) -> TaskFields:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: one is named twice")
        if self.tasks and self.tokenizer is None:
            raise ValueError("tokenizer: tasks need one; name the folder with the tokenizer.json of the corpora")
        return self

    @property
    def task_measures(self) -> list[str]:
        """What the measures of the tasks are called, beside the domains."""
        return [f"{TASK}{name}" for name in self.tasks]


@dataclass(frozen=True)
class StudyTasks:
    """Tasks that are ready to be measured.

    Attributes:
        lengths: by task.
        tokenizer: its folder; None without tasks.
    """

    tasks: list[ClozeTask] = field(default_factory=list)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    tokenizer: Path | None = None

    @property
    def tokens(self) -> int:
        """Tokens that a run reads to be measured."""
        return sum(found.tokens for found in self.lengths.values())

    def paths(self, queue: Path) -> dict[str, Path]:
        """Where `write` puts the tasks, by name."""
        from megatron_kaiyuan.evaluate.cloze import task_path

        return {task.name: task_path(task, queue / "tasks") for task in self.tasks}

    def write(self, queue: Path) -> None:
        """Write the tasks into the folder of a queue, where its workers read them."""
        from megatron_kaiyuan.evaluate.cloze import write_task

        for task in self.tasks:
            write_task(task, queue / "tasks")

    def describe(self) -> list[str]:
        """A line for each task."""
        return [
            f"task {task.name}: {len(task.items):,} right answers of {task.bytes:,} bytes"
            + (f"; {cut:,} contexts lose their beginning" if (cut := self.lengths[task.name].cut) else "")
            for task in self.tasks
        ]


def make_tasks(fields: TaskFields, held_out: Mapping[str, Path], seq_length: int) -> StudyTasks:
    """Have lm-eval load the tasks and build their items.

    Args:
        held_out: corpora by domain, which the tokenizer has to be that of.
        seq_length: tokens that the networks read at most.

    Raises:
        UserError: a task is unknown or has no answers to score, or the tokenizer is missing or another one.
    """
    if not fields.tasks or fields.tokenizer is None:
        return StudyTasks()
    from megatron_kaiyuan.evaluate.cloze import cloze_tasks, lengths
    from megatron_kaiyuan.evaluate.heldout import check_tokenizer
    from megatron_kaiyuan.export.loading import load_tokenizer

    if not fields.tokenizer.is_dir():
        raise UserError(f"tokenizer: {fields.tokenizer} is not a folder; name the folder with a tokenizer.json")
    check_tokenizer(fields.tokenizer, {domain: IndexedCorpus(prefix) for domain, prefix in held_out.items()})
    tokenizer = load_tokenizer(fields.tokenizer)
    selection = TaskSelection(tuple(fields.tasks), fields.include_path, fields.num_fewshot, fields.task_limit)
    tasks = cloze_tasks(selection)
    return StudyTasks(tasks, {task.name: lengths(task, tokenizer, seq_length) for task in tasks}, fields.tokenizer)
