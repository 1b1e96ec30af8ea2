"""Tasks of lm-eval as YAML with their data in a JSON lines file beside them: nothing comes from a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

DOCUMENTS: list[dict[str, Any]] = [
    {"question": f"Which one is number {number}?", "options": options, "right": number % 3, "word": options[number % 3]}
    for number, options in enumerate(
        [["one", "two words", "drei"], ["a long answer of words", "b", "c"], ["x", "yy", "五"], ["k", "l m", "n"]] * 3
    )
]
CHOICE = {"output_type": "multiple_choice", "doc_to_choice": "options", "doc_to_target": "right"}
QUESTION = {"doc_to_text": "Question: {{question}}\nAnswer:"}
TASKS: dict[str, dict[str, Any]] = {
    "options": {**QUESTION, **CHOICE},
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}} It is",
        "doc_to_target": " {{options[right]}}",
    },
    # Winogrande's form: contexts are chosen from, and what follows them is scored.
    "contexts": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{right}}",
        "doc_to_choice": "options",
        "doc_to_target": "and then {{question}}",
    },
    "letters": {**QUESTION, **CHOICE, "doc_to_choice": ["A", "B", "C"]},
    "numbers": {**QUESTION, **CHOICE, "doc_to_choice": ["(1)", "(2)", "(3)"]},
    "letters_continuation": {**QUESTION, **CHOICE},
    "told": {
        **QUESTION,
        "output_type": "generate_until",
        "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    },
    "told_at_length": {**QUESTION, "output_type": "generate_until", "doc_to_target": "{{word}}"},
    "running": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"},
    "several": {**QUESTION, **CHOICE, "doc_to_target": "{{[0, 1]}}"},
    "beyond": {**QUESTION, **CHOICE, "doc_to_target": "{{right + 2}}"},
    "empty": {"output_type": "loglikelihood", "doc_to_text": "{{question}}", "doc_to_target": " "},
    "no_data": {**QUESTION, **CHOICE, "dataset_kwargs": {"data_files": {"test": "/nonexistent/data.jsonl"}}},
    "tagged": {**QUESTION, **CHOICE, "tag": "pair"},
    "tagged_too": {"output_type": "loglikelihood", "doc_to_text": "So", "doc_to_target": " {{word}}", "tag": "pair"},
}


def write_tasks(folder: Path, documents: list[dict[str, Any]] | None = None) -> Path:
    """All of `TASKS` with the same documents; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.jsonl"
    rows = DOCUMENTS if documents is None else documents
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "fewshot_split": "test",
    }
    for name, fields in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**shared, "task": name, **fields}))
    return folder
