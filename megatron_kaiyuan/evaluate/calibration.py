"""Whether a model's confidence in its answers is how often they are right.

Of a multiple-choice task, the confidence in a document's answer is the largest of the choices' probabilities, a softmax
over the logarithms of the probabilities that lm-eval has scored their texts with; the answer is the one that lm-eval's
`acc` takes. Documents are put into M equal bins of confidence, ((m - 1) / M, m / M]:

    expected calibration error = sum over bins of items / all items * |accuracy - mean confidence|

Source: Guo et al. 2017 (arXiv 1706.04599), with its bins. Where choices are labels (MMLU's A to D), this is the plot of
Xmodel-2's report; where they are texts of several lengths, short ones are probable, and confidence says less.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask, Task

BINS = 10


@dataclass(frozen=True)
class Answer:
    """A model's answer to a document.

    Attributes:
        confidence: its probability among the choices.
        right: whether it is the right one.
    """

    confidence: float
    right: bool


def calibrations(
    names: Iterable[str], tasks: Mapping[str, Task], groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Figures of tasks that lm-eval has run, by the names that were asked for; of a group all answers together.

    Args:
        names: of tasks, groups or tags; of a tag, each task has figures of its own.
        tasks: by name.
        groups: names of each group's members, tasks and groups.
    """

    def members(name: str) -> list[Task]:
        if name in tasks:
            return [tasks[name]]
        return [task for member in groups.get(name, ()) for task in members(member)]

    named = {name: members(name) for name in names}
    seen = {task.task_name for found in named.values() for task in found}
    named |= {name: [task] for name, task in tasks.items() if name not in seen}
    pooled = {name: [answer for task in found for answer in answers(task)] for name, found in named.items()}
    return {name: calibration(found) for name, found in pooled.items() if found}


def answers(task: Task) -> list[Answer]:
    """The answers to the documents of a task that lm-eval has run; none where it does not let choose."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    documents = itertools.groupby(task.instances, key=lambda request: request.doc_id)
    return [_answer(task, list(requests)) for _, requests in documents]


def _answer(task: ConfigurableTask, requests: Sequence[Instance]) -> Answer:
    document = requests[0].doc
    choices = task.doc_to_choice(document)
    # A task that measures mutual information scores each choice a second time, without its context.
    scores = np.array([request.resps[0][0] for request in requests[: len(choices)]], np.float64)
    probabilities = np.exp(scores - scores.max())
    given = int(scores.argmax())
    return Answer(float(probabilities[given] / probabilities.sum()), given in _right_ones(task, document, choices))


def _right_ones(task: ConfigurableTask, document: dict[str, Any], choices: Sequence[str]) -> set[int]:
    """Numbers of the right choices, found as lm-eval does; a number outside of the choices is none of them."""
    # Where contexts are chosen from, as in Winogrande, `doc_to_text` is the number of the right one.
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    named = right if isinstance(right, list) else [right]
    return {choices.index(one) if isinstance(one, str) and one in choices else one for one in named}


def calibration(found: Sequence[Answer]) -> dict[str, Any]:
    """Figures of some answers, at least one.

    Returns:
        {"items", "accuracy", "confidence", "expected_calibration_error", "bins": [{"from", "to", "items", "confidence",
        "accuracy"}]}: means; of the bins those that are not empty, by confidence.
    """
    confidences = np.array([one.confidence for one in found])
    right = np.array([one.right for one in found], np.float64)
    places = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        bins.append(
            {
                "from": int(place) / BINS,
                "to": (int(place) + 1) / BINS,
                "items": int(inside.sum()),
                "confidence": float(confidences[inside].mean()),
                "accuracy": float(right[inside].mean()),
            }
        )
    error = sum(one["items"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / len(found)
    return {
        "items": len(found),
        "accuracy": float(right.mean()),
        "confidence": float(confidences.mean()),
        "expected_calibration_error": float(error),
        "bins": bins,
    }
