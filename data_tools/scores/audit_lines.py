"""An audit as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_WIDEST = 28
_MOST_COLUMNS = 8


def audit_lines(found: dict[str, Any]) -> Iterator[str]:
    """The tables of `audit`, and its warnings last, where they are read."""
    sample = "" if found["looked_at"] == found["documents"] else f", {found['looked_at']:,} of them looked at"
    yield f"{found['documents']:,} documents{sample}, by {found['by']}"
    for score, about in found["scores"].items():
        yield ""
        between = "" if about["between"] is None else f"; {about['between']:.0%} of the variance of ranks between them"
        yield f"{score}: {about['documents']:,} scored, {about['missing']:,} missing{between}"
        rows = [
            [name, f"{group['documents']:,}", f"{group['scored']:,}", _number(group["auc"], 3), _median(group)]
            for name, group in about["groups"].items()
        ]
        yield from table_lines([found["by"], "documents", "scored", "AUC", "median"], rows)
        yield ""
        yield from _portrait(score, about["portrait"])
    if found["pairs"]:
        yield ""
        rows = [
            [" ~ ".join(pair["scores"]), *(_number(value, 2) for value in _correlations(pair))]
            for pair in found["pairs"]
        ]
        yield from table_lines(["rank correlation", "over all", "within, mean", *found["groups"][:_MOST_COLUMNS]], rows)
    for warning in found["warnings"]:
        yield f"warning: {warning}"


def _median(group: dict[str, Any]) -> str:
    return _number(group["median"], 4, "g") if group["scored"] else "no score"


def _correlations(pair: dict[str, Any]) -> list[float | None]:
    return [pair["over_all"], pair["mean"], *list(pair["within"].values())[:_MOST_COLUMNS]]


def _portrait(score: str, quantiles: Sequence[dict[str, Any]]) -> Iterator[str]:
    labels = list(quantiles[0]["labels"]) if quantiles else []
    rows = []
    for number, row in enumerate(quantiles, 1):
        place = "worst" if number == 1 else "best" if number == len(quantiles) else str(number)
        figures = [_number(row["from"], 4, "g"), _number(row["to"], 4, "g"), _number(row["bytes"], 0)]
        figures += [_number(row["type_token_ratio"], 2), _number(row["symbols"], 3), shares(row["groups"], 2)]
        figures += [shares(row["labels"][name], 1) for name in labels]
        rows.append([place, f"{row['documents']:,}", *figures, shares(row["fails"], 2)])
    heads = [score, "documents", "from", "to", "bytes", "type-token", "symbols", "most are", *labels, "fail"]
    yield from table_lines(heads, rows)


def shares(values: dict[str, float], most: int) -> str:
    """The largest shares in words: "web 62%, code 20%"."""
    largest = sorted(values.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} {share:.0%}" for name, share in largest if share)


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as what is in them, all but the last up to a limit; only the first is set to the left."""
    short = [[*map(_short, row[:-1]), row[-1]] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*short, strict=True)]
    for row in short:
        yield "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _number(value: float | None, digits: int, form: str = "f") -> str:
    return "-" if value is None else f"{value:,.{digits}{form}}"
