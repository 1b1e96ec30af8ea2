"""Which documents a stretch of the token stream was cut from, in few words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from megatron_kaiyuan.data.stream import TokenStream


def documents_between(stream: TokenStream, start: int, stop: int, most_ranges: int = 32) -> list[dict[str, Any]]:
    """The documents that hold the tokens [start, stop) of the stream, by phase and corpus.

    Args:
        most_ranges: ranges of sequence numbers to write out for each corpus.

    Returns:
        Entries {"phase", "corpus", "documents": how many, "sequences": "3-5 9 ...", ascending; "..." when cut}.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for index, phase in enumerate(stream.phases):
        first = max(start, int(stream.boundaries[index]))
        last = min(stop, int(stream.boundaries[index + 1])) - 1
        if first > last:
            continue
        first_number, last_number = (phase.locate(token - int(stream.boundaries[index]))[0] for token in (first, last))
        names = [entry["name"] for entry in phase.manifest["corpora"]]
        for number in range(first_number, last_number + 1):
            dataset, sequence = phase.document(number)
            # What lies beyond the corpora is padding.
            if dataset < len(names):
                found.setdefault((phase.name, names[dataset]), []).append(sequence)
    return [
        {"phase": phase, "corpus": corpus, "documents": len(numbers), "sequences": _ranges(numbers, most_ranges)}
        for (phase, corpus), numbers in found.items()
    ]


def _ranges(numbers: Iterable[int], most: int) -> str:
    """Numbers as `3-5 9 12`, ascending, each once."""
    spans = list(itertools.islice(_spans(sorted(set(numbers))), most + 1))
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans[:most]]
    return " ".join([*texts, *(["..."] if len(spans) > most else [])])


def _spans(ascending: list[int]) -> Iterator[tuple[int, int]]:
    for _, group in itertools.groupby(enumerate(ascending), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        yield members[0], members[-1]
