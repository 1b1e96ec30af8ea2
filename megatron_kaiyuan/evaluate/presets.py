"""Sets of lm-eval's tasks by what they measure, with the examples before each question (shots) stated.

English tasks are those that the data benchmarks of the Kaiyuan-2B report name (arXiv 2512.07612), and ARC; the others
are the usual ones of their kind, and our choice. Shots are the Open LLM Leaderboard's where it has the task (MMLU,
ARC-Challenge, HellaSwag, WinoGrande, GSM8K), lm-eval's where it fixes them (Minerva, HumanEval, MBPP), else ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.task_selection import TaskSelection

PRESETS: Mapping[str, Mapping[str, int]] = {
    "english": {
        "mmlu": 5,
        "arc_easy": 0,
        "arc_challenge": 25,
        "hellaswag": 10,
        "winogrande": 5,
        "piqa": 0,
        "boolq": 0,
        "commonsense_qa": 7,
    },
    "chinese": {"ceval-valid": 5, "cmmlu": 5},
    "math": {"gsm8k": 5, "minerva_math": 4},
    "code": {"humaneval": 0, "mbpp": 3},
}


def preset_selections(
    presets: Sequence[str], limit: int | None = None, runs_code: bool = False
) -> Iterator[TaskSelection]:
    """The tasks of some presets, those with equal shots together.

    Raises:
        UserError: a preset is unknown.
    """
    shots: dict[int, list[str]] = {}
    for preset in dict.fromkeys(presets):
        if preset not in PRESETS:
            raise UserError(f"--preset {preset}: is not one of {', '.join(PRESETS)}")
        for task, number in PRESETS[preset].items():
            shots.setdefault(number, []).append(task)
    for number, tasks in shots.items():
        yield TaskSelection(tuple(tasks), None, number, limit, runs_code)
