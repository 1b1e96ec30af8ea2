"""Which windows are cut: target quantiles from the best score, each so wide, or windows as written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import pairwise

from data_tools.curriculum.keep import Keep, parse_keep
from megatron_kaiyuan.errors import UserError

# The targets of the PCMind-2.1-Kaiyuan-2B report (arXiv 2512.07612): the top 0 to 75 %, each 2 % wide.
TOPS = ("0", "0.15", "0.30", "0.45", "0.60", "0.75")
WIDTH = "0.02"


@dataclass(frozen=True)
class TargetWindow:
    """A window of one dataset.

    Attributes:
        bounds: as written, from the best score: "0.30-0.32".
        by_tokens: they are shares of tokens, not of documents.
    """

    bounds: str
    by_tokens: bool

    @property
    def keep(self) -> str:
        """As an order recipe has it."""
        return f"window {self.bounds}{' of tokens' if self.by_tokens else ''}"

    @property
    def kept(self) -> Keep:
        """`keep` as read."""
        return parse_keep(self.keep)

    @property
    def asked(self) -> tuple[Fraction, Fraction]:
        """The bounds as numbers."""
        return self.kept.skip, self.kept.fraction

    def span(self, documents: int, weight: int) -> tuple[int, int]:
        """Ranks [first, last) or tokens (first, last], as `Builder.measure` takes them."""
        return self.kept.tokens(weight) if self.by_tokens else self.kept.ranks(documents)


def read_targets(tops: Sequence[str], width: str, windows: Sequence[str], by: str) -> list[TargetWindow]:
    """Windows [top, top + width] for each of `tops` (the report's, if there are none), or `windows` as `0.30-0.32`.

    Raises:
        UserError: a number is wrong, two windows are equal, or both ways are used.
    """
    if by not in ("documents", "tokens"):
        raise UserError(f"--by {by}: write --by documents or --by tokens")
    if tops and windows:
        raise UserError("--top and --window: name windows in one of the two ways")
    found = [TargetWindow(_plain(window), by == "tokens") for window in windows or _of_tops(tops or TOPS, width)]
    for target in found:
        try:
            parse_keep(target.keep)
        except ValueError as error:
            option = "--window" if windows else "--top or --width"
            raise UserError(f"{option}: {str(error).removeprefix('keep is ')}") from error
    ordered = sorted(found, key=lambda target: target.asked)
    for one, other in pairwise(ordered):
        if one.asked == other.asked:
            raise UserError(f"--{'window' if windows else 'top'}: {one.bounds} is named twice")
    return ordered


def _of_tops(tops: Sequence[str], width: str) -> list[str]:
    wide = _number("--width", width)
    return [f"{(near := _number('--top', top)):f}-{near + wide:f}" for top in tops]


def _number(option: str, text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise UserError(f"{option} {text!r}: write a share from the best score, as 0.30") from None
    if not number.is_finite() or not 0 <= number <= 1:
        raise UserError(f"{option} {text}: write a share from 0 to 1, counted from the best score")
    return number


def _plain(bounds: str) -> str:
    """Without white space, for names of folders."""
    return "".join(bounds.split())
