"""Two lm-eval tasks made from held-out text: files in a folder, nothing from a hub.

`heldout_rolling`: bits per UTF-8 byte of the start of whole documents.
`heldout_continuation`: which of four texts continues a context? The true continuation stands against those of
three other documents of the same domain; chance is 1/4.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_text

ROLLING = "heldout_rolling"
CONTINUATION = "heldout_continuation"
CHOICES = 4


@dataclass(frozen=True)
class TaskSizes:
    """How much text the tasks take; by default few enough for a small model on two cores.

    Attributes:
        documents: of the rolling task, spread evenly over the domains.
        document_characters: of each, from its start.
        items: of the continuation task, spread evenly over the domains.
        context_characters, continuation_characters: of each item.
    """

    documents: int = 45
    document_characters: int = 2000
    items: int = 120
    context_characters: int = 300
    continuation_characters: int = 100


def write_tasks(files: Sequence[Path], folder: Path, sizes: TaskSizes, seed: int) -> dict[str, int]:
    """Write both tasks' YAML and data into `folder`; the same files and seed give the same bytes.

    Args:
        files: held-out JSON lines, one document {"text", "domain", ...} a line.

    Returns:
        Items by task name; a task that the text is too short for is left out.

    Raises:
        UserError: a file is missing or a line is no such document, or neither task can be made.
    """
    domains = read_domains(files)
    drawn = random.Random(seed)
    items = {ROLLING: _rolling(domains, sizes, drawn), CONTINUATION: _continuations(domains, sizes, drawn)}
    items = {name: rows for name, rows in items.items() if rows}
    if not items:
        raise UserError(f"{files[0]}: no text to evaluate on; name held-out files with longer documents")
    for name, rows in items.items():
        data = folder / f"{name}.jsonl"
        write_text(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_text(folder / f"{name}.yaml", yaml.safe_dump(_task(name, data, folder), sort_keys=False))
    return {name: len(rows) for name, rows in items.items()}


def read_domains(files: Sequence[Path]) -> dict[str, list[str]]:
    """Texts by domain, in the order of the files.

    Raises:
        UserError: no file is given, one is missing, or a line is not a JSON object with a text and a domain.
    """
    if not files:
        raise UserError("evaluation: name at least one file of held-out text")
    domains: dict[str, list[str]] = {}
    for path in files:
        try:
            with open(path, encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    domain, text = _document(path, number, line)
                    domains.setdefault(domain, []).append(text)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: held-out text cannot be read ({error}); check the path") from error
    return domains


def _document(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        domain, text = row.get("domain", path.stem), row["text"]
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f'{path}, line {number}: wants JSON lines: an object with "text" in each') from error
    if not isinstance(text, str) or not isinstance(domain, str):
        raise UserError(f'{path}, line {number}: "text" and "domain" must be strings')
    return domain, text


def _rolling(domains: dict[str, list[str]], sizes: TaskSizes, drawn: random.Random) -> list[dict[str, Any]]:
    rows = []
    for domain, texts in sorted(domains.items()):
        usable = [text[: sizes.document_characters] for text in texts if text.strip()]
        rows += [{"domain": domain, "text": text} for text in _sample(usable, sizes.documents, domains, drawn)]
    return rows


def _continuations(domains: dict[str, list[str]], sizes: TaskSizes, drawn: random.Random) -> list[dict[str, Any]]:
    rows = []
    for domain, texts in sorted(domains.items()):
        pairs = [pair for text in texts if (pair := _cut(text, sizes))]
        for context, continuation in _sample(pairs, sizes.items, domains, drawn):
            others = sorted({other for _, other in pairs} - {continuation})
            if len(others) < CHOICES - 1:
                continue
            choices = drawn.sample(others, CHOICES - 1)
            gold = drawn.randrange(CHOICES)
            choices.insert(gold, continuation)
            rows.append({"domain": domain, "context": context, "choices": choices, "gold": gold})
    return rows


def _cut(text: str, sizes: TaskSizes) -> tuple[str, str] | None:
    """A context and what follows it, parted before a space where there is one near; None for a short text."""
    wanted = sizes.context_characters
    space = text.find(" ", wanted, wanted + 20)
    at = space if space > 0 else wanted
    context = text[:at].rstrip()
    continuation = text[len(context) : len(context) + sizes.continuation_characters]
    if not context or len(continuation) < sizes.continuation_characters or not continuation.strip():
        return None
    return context, continuation


def _sample(rows: list[Any], total: int, domains: Iterable[str], drawn: random.Random) -> list[Any]:
    """This domain's even share of `total`, in a seeded order."""
    share = -(-total // len(list(domains)))
    return drawn.sample(rows, min(share, len(rows)))


def _task(name: str, data: Path, folder: Path) -> dict[str, Any]:
    shared = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data.resolve())},
            # Not the user's home: an evaluation leaves nothing outside its work folder.
            "cache_dir": str((folder / "cache").resolve()),
        },
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    if name == ROLLING:
        return {
            **shared,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte"}],
        }
    return {
        **shared,
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
