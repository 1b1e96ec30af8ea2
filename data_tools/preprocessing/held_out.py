"""Documents that are held out: chosen by a hash of their text, so that equal texts are never on both sides.

The choice depends on nothing else: not on the order of the input, on the tokenizer, or on how the work is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from data_tools.reading.tasks import Settings
from data_tools.reading.text import Rows

_SEED = 1234
# How the words begin for what a corpus of held-out documents holds.
HELD_OUT = "held out: "


def corpus_prefixes(output_prefix: Path, settings: Settings) -> dict[Path, str]:
    """The prefix of each corpus and what it holds: the documents of each json key, then those that are held out."""
    splits = {output_prefix.name: ""} | ({f"{output_prefix.name}.heldout": HELD_OUT} if settings.held_out else {})
    return {
        output_prefix.with_name(f"{name}_{key}_document"): f"{split}{key}"
        for name, split in splits.items()
        for key in settings.json_keys
    }


def split_rows(rows: Rows, settings: Settings) -> list[Rows]:
    """Rows by split, in the order of `corpus_prefixes`; counts of rows that were left out belong to the first."""
    if not settings.held_out:
        return [rows]
    first = rows.texts[settings.json_keys[0]]
    out = [is_held_out(text, settings.held_out) for text in first]
    kept, held = (_where([one is wanted for one in out], rows, settings) for wanted in (False, True))
    kept.bad, kept.left_out, kept.count, kept.read, held.read = (
        rows.bad,
        rows.left_out,
        rows.count,
        rows.read,
        rows.read,
    )
    return [kept, held]


def is_held_out(text: str, share: float) -> bool:
    """Whether a document of that text is held out."""
    return xxhash.xxh3_64_intdigest(text.encode(), seed=_SEED) < share * 2**64


def _where(wanted: Sequence[bool], rows: Rows, settings: Settings) -> Rows:
    def chosen(values: list[Any]) -> list[Any]:
        return [value for value, take in zip(values, wanted, strict=True) if take]

    found = Rows.empty(settings)
    for name in ("texts", "text_bytes", "scores", "meta"):
        setattr(found, name, {key: chosen(values) for key, values in getattr(rows, name).items()})
    for name in ("domains", "sources", "places"):
        setattr(found, name, chosen(getattr(rows, name)))
    return found
