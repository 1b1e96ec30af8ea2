"""lm-eval's tasks in cloze form: bits per byte of the right answers' texts, each after its context.

    sum over items of -log2 p(answer | context) / sum over items of the answer's UTF-8 bytes

Accuracy is at chance for small networks; the probability of the right answer falls and rises long before. White space
around an answer is scored with it, as lm-eval does, and is not counted among its bytes. The texts are lm-eval's own
requests, few-shot examples included, so that two tasks with the same items are the same measure.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.task_selection import (
    TaskSelection,
    build_requests,
    fields_of,
    load_tasks,
    suggest_cloze,
    task_manager,
)
from megatron_kaiyuan.files import read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import Form, require_form
from megatron_kaiyuan.outputs import identity_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

FORMAT = "kaiyuan-cloze-task"
# What a choice is called instead of what it says.
_LABELS = (string.ascii_uppercase, string.ascii_lowercase, string.digits, string.digits[1:])


@dataclass(frozen=True)
class Item:
    """A context and the answer that follows it.

    Attributes:
        answer: the right answer, with what parts it from its context.
    """

    context: str
    answer: str

    @property
    def bytes(self) -> int:
        return len(self.answer.strip().encode())


@dataclass(frozen=True)
class ClozeTask:
    """A task, or all tasks of a group, as items to score."""

    name: str
    items: tuple[Item, ...]

    @property
    def identity(self) -> str:
        """Fingerprint of all that is scored."""
        return identity_of([[item.context, item.answer] for item in self.items])

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)


def cloze_tasks(selection: TaskSelection) -> list[ClozeTask]:
    """Have lm-eval build the requests of tasks, and keep those of the right answers.

    Raises:
        UserError: a task is unknown, cannot be loaded, or has no answer to score; the message names it.
    """
    found = []
    manager = task_manager(selection)
    for name in selection.names:
        # Before the data of what may be many tasks are loaded, as of MMLU's 57.
        for fields in fields_of(name, manager):
            choices = fields.get("doc_to_choice")
            _refuse(name, manager, _why_not(fields.get("output_type"), [choices] if isinstance(choices, list) else []))
    for name, loaded in load_tasks(selection, manager).items():
        requests = []
        for task in loaded["tasks"].values():
            build_requests(task, selection)
            _refuse(name, manager, why_no_cloze(task))
            requests += right_answers(task)
        found.append(ClozeTask(name, tuple(Item(*request.args[:2]) for request in requests)))
    return found


def why_no_cloze(task: Task) -> str | None:
    """Why the answers of a task cannot be scored as text; None: they can. Its requests have been built."""
    choices = []
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = [task.doc_to_choice(request.doc) for request in task.instances if request.idx == 0]
    return _why_not(task.OUTPUT_TYPE, choices)


def _why_not(output_type: str | None, choices: Sequence[Sequence[Any]]) -> str | None:
    """See `why_no_cloze`; `choices` are those of every document, or none are known."""
    if output_type == "generate_until":
        return "its answers are generated, not scored; name a multiple-choice or loglikelihood task"
    if output_type == "loglikelihood_rolling":
        return "it scores running text, not answers; make a held-out corpus of it"
    named = {tuple(str(choice).strip(" ().:") for choice in one) for one in choices}
    if named and all(any(one == tuple(labels[: len(one)]) for labels in _LABELS) for one in named):
        return (
            f"its answers are the labels {', '.join(min(named))}, whose probability says nothing of the text; "
            "name a task that scores the options' text"
        )
    return None


def _refuse(name: str, manager: TaskManager, why: str | None) -> None:
    if why:
        raise UserError(f"task {name!r}: {why}{suggest_cloze(name, manager)}")


def right_answers(task: Task) -> list[Instance]:
    """The request of each document's right answer. The requests have been built, and `why_no_cloze` is None.

    Raises:
        UserError: a document has no right answer, several, or an empty one.
    """
    found = []
    for number, (_, group) in enumerate(itertools.groupby(task.instances, key=lambda request: request.doc_id)):
        requests = list(group)
        right = requests[0]
        if task.OUTPUT_TYPE == "multiple_choice":
            right = requests[_right_choice(task, requests[0].doc, number)]
        if not isinstance(right.args[1], str) or not right.args[1].strip():
            raise UserError(f"task {task.task_name!r}: document {number} has no text as its right answer; leave it out")
        found.append(right)
    return found


def _right_choice(task: ConfigurableTask, document: dict[str, Any], number: int) -> int:
    choices = task.doc_to_choice(document)
    # Where contexts are chosen from, as in Winogrande, `doc_to_text` is the number of the right one.
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(right, list) and len(right) == 1:
        (right,) = right
    if isinstance(right, str) and right in choices:
        right = choices.index(right)
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise UserError(
            f"task {task.task_name!r}: document {number} has {right!r} as its right answer, not one of its "
            f"{len(choices)} choices; mend or leave it out"
        )
    return right


def bits_per_byte(requests: Sequence[Instance], results: Sequence[tuple[float, bool]]) -> float:
    """Of scored requests: all their bits over all their answers' bytes.

    Args:
        results: of each, the logarithm of its probability, and whether it is the most probable.
    """
    size = sum(Item(*request.args[:2]).bytes for request in requests)
    return -math.fsum(logarithm for logarithm, _ in results) / math.log(2) / size


def measure(model: HFLM, task: ClozeTask) -> float:
    """Bits per byte of a task's right answers."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (item.context, item.answer), 0, (task.name, number, 1))
        for number, item in enumerate(task.items)
    ]
    return bits_per_byte(requests, model.loglikelihood(requests, disable_tqdm=True))


@dataclass(frozen=True)
class Lengths:
    """Tokens that scoring a task takes.

    Attributes:
        tokens: of all contexts and answers, as far as they reach the network.
        cut: items whose context loses its beginning.
    """

    tokens: int
    cut: int


def lengths(task: ClozeTask, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Lengths:
    """Count a task's tokens as lm-eval cuts them.

    Raises:
        UserError: an answer is longer than the network's context.
    """
    tokens = cut = 0
    for number, item in enumerate(task.items):
        context = tokenizer.encode(item.context.rstrip()) if item.context else [tokenizer.eos_token_id]
        whole = tokenizer.encode(item.context + item.answer)
        answer = len(whole) - (len(context) if item.context else 0)
        if not 0 < answer <= max_length:
            raise UserError(
                f"task {task.name!r}: the right answer of document {number} has {answer} tokens, and the network reads "
                f"1 to {max_length}; leave it out, or raise the recipe's seq_length"
            )
        cut += len(context) + answer > max_length + 1
        tokens += min(len(context) + answer, max_length + 1)
    return Lengths(tokens, cut)


def write_task(task: ClozeTask, folder: Path) -> Path:
    """Write a task's items into a folder, under a name made from its content; the same items are the same file."""
    path = task_path(task, folder)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        items = [asdict(item) for item in task.items]
        write_sealed_json(path, {"format": FORMAT, "name": task.name, "items": items})
    return path


def task_path(task: ClozeTask, folder: Path) -> Path:
    return folder / f"{task.name}-{task.identity[:16]}.json"


class _Item(Form):
    context: str
    # Without a byte to divide by there is no measure.
    answer: Annotated[str, Field(pattern=r"\S")]


class _Task(Form):
    name: str
    items: Annotated[list[_Item], Field(min_length=1)]


def read_task(path: Path) -> ClozeTask:
    """A task that `write_task` wrote.

    Raises:
        UserError: the file is missing, damaged or something else.
    """
    content = read_sealed_json(path, "task in cloze form")
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: is not a task in cloze form; give the command that made it again")
    require_form(path, content, _Task, "give the command that made it again")
    return ClozeTask(content["name"], tuple(Item(item["context"], item["answer"]) for item in content["items"]))
