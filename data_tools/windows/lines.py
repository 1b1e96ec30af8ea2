"""The windows as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def window_lines(found: dict[str, Any], output: Path) -> Iterator[str]:
    """A row for each window of windows.json, what a reader of them must know, and a summary."""
    rows = [("window", "documents", "tokens", "lowest", "highest", "bytes")]
    for window in found["windows"]:
        scores = ("none" if window[end] is None else f"{window[end]:.6g}" for end in ("lowest", "highest"))
        size = (window["portrait"] or {}).get("bytes")
        counts = (f"{window['documents']:,}", f"{window['tokens']:,}", *scores)
        rows.append((window["name"], *counts, f"{size:,.0f}" if size else "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        yield "  ".join(
            [name.ljust(widths[0]), *(cell.rjust(size) for cell, size in zip(cells, widths[1:], strict=True))]
        )
    yield from _notes(found["windows"])
    yield (
        f"quantile: {len(found['windows'])} windows of {len(found['datasets'])} "
        f"{'dataset' if len(found['datasets']) == 1 else 'datasets'}, {found['tokens']:,} tokens each, in {output}"
    )


def _notes(windows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What a reader of the windows must know: repetition, and windows that the score does not tell apart."""
    for window in windows:
        if window["repeat"] > 1 and window["phase_tokens"] > window["tokens"]:
            yield f"{window['name']}: repeated {window['repeat']:.2f} times, it holds {window['tokens']:,} tokens"
    alike: dict[tuple[str, float], list[str]] = {}
    for window in windows:
        if window["lowest"] is not None and window["lowest"] == window["highest"]:
            alike.setdefault((window["dataset"], window["lowest"]), []).append(window["name"])
    for (_, score), names in alike.items():
        if len(names) > 1:
            yield f"{', '.join(names)}: all scores are {score:.6g}; which document is in which was drawn by the seed"
