"""Which of lm-eval's tasks are measured, and how lm-eval loads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kaiyuan.errors import UserError, excerpt, require
from megatron_kaiyuan.evaluate.quiet import quiet

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict

_NAME = re.compile(r"\w[\w.-]*")
# lm-eval's own default for the choice of few-shot examples.
_FEWSHOT_SEED = 1234
# How lm-eval calls variants that score the options' text.
_CLOZE = ("_continuation", "_cloze")


@dataclass(frozen=True)
class TaskSelection:
    """Tasks of lm-eval, by name.

    Attributes:
        include_path: a folder with YAML files of one's own tasks, besides lm-eval's.
        num_fewshot: examples before each question; None: as the task says. A task that says 0 keeps 0.
        limit: documents of each task, its first ones; None: all.
        runs_code: tasks may run the code that a model writes.
    """

    names: tuple[str, ...]
    include_path: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    runs_code: bool = False


def check_name(name: str) -> str:
    """A task's name.

    Raises:
        ValueError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a task; name it, and the folder of its YAML in include_path")
    return name


def load_tasks(selection: TaskSelection, manager: TaskManager) -> dict[str, TaskDict]:
    """Load tasks with their data, by the name that was asked for; a group or a tag is all of its tasks.

    Raises:
        UserError: a task is unknown, or it or its data cannot be loaded.
    """
    found = {}
    for name in selection.names:
        _require(name, manager)
        with _about(name), quiet():
            found[name] = manager.load([name])
    return found


def require_tasks(selection: TaskSelection) -> None:
    """Look for all tasks by name, without their data.

    Raises:
        UserError: lm-eval is not installed, or a task or the folder is not there.
    """
    manager = task_manager(selection)
    for name in selection.names:
        _require(name, manager)


def fields_of(name: str, manager: TaskManager) -> Iterator[dict[str, Any]]:
    """The YAML fields of a task, or of each task of a group or tag, without data. Groups may name what is not there.

    Raises:
        UserError: there is no such task.
    """
    _require(name, manager)
    entry = manager.task_index[name]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    if isinstance(members, list):
        for member in _names(members):
            if member in manager.task_index and member != name:
                yield from fields_of(member, manager)
    else:
        yield entry.cfg or {}


def _names(members: list[Any]) -> Iterator[str]:
    """Names in a group's list, which may hold groups of its own."""
    for member in members:
        named = member.get("task", member.get("group")) if isinstance(member, dict) else member
        yield from _names(named) if isinstance(named, list) else [str(named)]


def _require(name: str, manager: TaskManager) -> None:
    if name not in manager.task_index:
        raise UserError(
            f"task {name!r}: is not among the tasks of lm-eval {version('lm_eval')} and of include_path, or its YAML "
            "cannot be read; lm-eval ls tasks lists lm-eval's own"
        )


def task_manager(selection: TaskSelection) -> TaskManager:
    """lm-eval's register of tasks; its own thousands are only read where one of them may be meant, which takes seconds.

    Raises:
        UserError: lm-eval is not installed, or the folder is not there.
    """
    manager = require("lm_eval.tasks", extra="eval", purpose="a task of lm-eval").TaskManager
    path = selection.include_path
    if path is not None and not path.is_dir():
        raise UserError(f"include_path: {path} is not a folder; name the folder with the tasks' YAML files")
    with quiet():
        if path is not None:
            local = manager(include_path=str(path), include_defaults=False)
            # A group may consist of lm-eval's own tasks.
            kinds = {local.task_index[name].kind.name if name in local.task_index else "" for name in selection.names}
            if kinds <= {"TASK", "PY_TASK", "TAG"}:
                return local
        return manager(include_path=None if path is None else str(path))


def prepare(task: Task, selection: TaskSelection) -> None:
    """Set a task's few-shot examples as lm-eval's `simple_evaluate` does."""
    own = task.get_config("num_fewshot")
    if own is None or (selection.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=selection.num_fewshot or 0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def build_requests(task: Task, selection: TaskSelection) -> None:
    """Have lm-eval write a task's requests, few-shot examples included.

    Raises:
        UserError: it cannot, as where there are fewer examples than asked for.
    """
    prepare(task, selection)
    with _about(task.task_name), quiet():
        task.build_all_requests(limit=selection.limit, rank=0, world_size=1)


def missing_data(names: Sequence[str]) -> str:
    """What to do, in one line, where the data of tasks are not on this machine."""
    load = f"from lm_eval.tasks import TaskManager; TaskManager().load({list(names)})"
    return (
        f"tasks {', '.join(names)}: their data are not on this machine, which does not reach the hub; where there is a "
        f'network run HF_HOME=hf python -c "{load}", copy the folder hf here and set HF_HOME to it'
    )


def suggest_cloze(name: str, manager: TaskManager) -> str:
    """The variant of a task that scores the options' text, as an end of a sentence; empty: there is none."""
    variants = [f"{name}{ending}" for ending in _CLOZE if f"{name}{ending}" in manager.task_index]
    return f", such as {variants[0]}" if variants else ""


@contextmanager
def _about(name: str) -> Iterator[None]:
    """A task is somebody's YAML, Python and data; lm-eval and datasets raise whatever these lead to."""
    try:
        yield
    except UserError:
        raise
    # Of the hub, after the libraries' own repetitions.
    except ConnectionError as error:
        raise UserError(f"{missing_data([name])} ({excerpt(error)})") from error
    except Exception as error:
        raise UserError(f"task {name!r}: cannot be loaded ({type(error).__name__}: {excerpt(error)})") from error
