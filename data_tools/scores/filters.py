"""The language of `--filter`: comparisons of columns, joined by `and`, `or`, `not` and parentheses.

A comparison is a column, one of > >= < <= == !=, and a number or a quoted text. A name with other characters than
letters, digits and _ stands in backquotes. A comparison with a missing value (null, NaN, or a column that the shard
does not have) is false, so `not` of it is true. What a row is dropped for is what is true of it: `not edu > 2`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.reading.arrow_values import in_words
from data_tools.steps.step import column_list
from megatron_kaiyuan.errors import UserError

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    ">": pc.greater,
    "<": pc.less,
}
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<operator>>=|<=|==|!=|>|<)
      | (?P<bracket>[()])
      | (?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)
      | (?P<text>'[^']*'|"[^"]*")
      | (?P<name>[^\W\d]\w*|`[^`]+`)
    )""",
    re.VERBOSE,
)
_WORDS = ("and", "or", "not")
_DEEPEST = 50
_PLAIN = re.compile(r"[^\W\d]\w*")


class FilterResult(NamedTuple):
    """What a condition says of each row.

    Attributes:
        holds: bool, no nulls.
        reasons: string: what is true of a row where it does not hold, null where it does.
    """

    holds: pa.Array
    reasons: pa.Array


class Condition(Protocol):
    """A part of a filter; its text form can be parsed again."""

    def verdict(self, rows: pa.RecordBatch) -> FilterResult:
        """Judge each row.

        Raises:
            UserError: a column does not hold what it is compared with.
        """

    def columns(self) -> set[str]:
        """The columns that are compared."""


@dataclass(frozen=True)
class Comparison:
    """`column operator value`."""

    column: str
    operator: str
    value: float | int | str

    def __str__(self) -> str:
        name = self.column if _PLAIN.fullmatch(self.column) and self.column not in _WORDS else f"`{self.column}`"
        quote = '"' if isinstance(self.value, str) and "'" in self.value else "'"
        value = f"{quote}{self.value}{quote}" if isinstance(self.value, str) else repr(self.value)
        return f"{name} {self.operator} {value}"

    def columns(self) -> set[str]:
        return {self.column}

    def verdict(self, rows: pa.RecordBatch) -> FilterResult:
        values, value = self._operands(rows)
        missing = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))
        holds = pc.and_(pc.invert(missing), pc.fill_null(_COMPARE[self.operator](values, value), False))
        why_not = pc.if_else(missing, f"{self.column} is missing: {self}", f"not {self}")
        return FilterResult(holds, pc.if_else(holds, pa.scalar(None, pa.string()), why_not))

    def _operands(self, rows: pa.RecordBatch) -> tuple[pa.Array, pa.Scalar]:
        """The column and the value in one type."""
        at = rows.schema.get_field_index(self.column)
        values = pa.nulls(len(rows)) if at < 0 else rows.column(at)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        kind = values.type
        wanted = pa.large_string() if isinstance(self.value, str) else pa.float64()
        if pa.types.is_null(kind):
            return values.cast(wanted), self._scalar(wanted)
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if is_text if isinstance(self.value, str) else (is_number or pa.types.is_boolean(kind)):
            return self._alike(values, wanted)
        held = "text" if is_text else "numbers" if is_number else in_words(kind)
        raise UserError(f"--filter {str(self)!r}: column {self.column!r} holds {held}, compared with {self.value!r}")

    def _alike(self, values: pa.Array, wanted: pa.DataType) -> tuple[pa.Array, pa.Scalar]:
        if isinstance(self.value, int) and pa.types.is_integer(values.type):
            # Whole numbers of more than 53 bits, such as ids, are compared as they are.
            try:
                return values, pa.scalar(self.value, values.type)
            except (OverflowError, pa.ArrowInvalid):
                pass
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.int8())
        return values.cast(wanted, safe=False), self._scalar(wanted)

    def _scalar(self, kind: pa.DataType) -> pa.Scalar:
        return pa.scalar(self.value if isinstance(self.value, str) else float(self.value), kind)


@dataclass(frozen=True)
class Not:
    """`not condition`."""

    inner: Condition

    def __str__(self) -> str:
        return f"not {_bracketed(self.inner)}"

    def columns(self) -> set[str]:
        return self.inner.columns()

    def verdict(self, rows: pa.RecordBatch) -> FilterResult:
        inner = self.inner.verdict(rows).holds
        return FilterResult(pc.invert(inner), pc.if_else(inner, str(self.inner), pa.scalar(None, pa.string())))


@dataclass(frozen=True)
class And:
    """All hold; the first that does not is the reason."""

    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(map(_bracketed, self.parts))

    def columns(self) -> set[str]:
        return set().union(*(part.columns() for part in self.parts))

    def verdict(self, rows: pa.RecordBatch) -> FilterResult:
        reasons = pc.coalesce(*(part.verdict(rows).reasons for part in self.parts))
        return FilterResult(pc.is_null(reasons), reasons)


@dataclass(frozen=True)
class Or:
    """One holds; where none does, all of their reasons are the reason."""

    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return " or ".join(map(_bracketed, self.parts))

    def columns(self) -> set[str]:
        return set().union(*(part.columns() for part in self.parts))

    def verdict(self, rows: pa.RecordBatch) -> FilterResult:
        # A reason is null where a part holds, and so is what is joined with a null.
        reasons = pc.binary_join_element_wise(*(part.verdict(rows).reasons for part in self.parts), " and ")
        return FilterResult(pc.is_null(reasons), reasons)


def _bracketed(part: Condition) -> str:
    return f"({part})" if isinstance(part, (And, Or)) else str(part)


def parse_filter(text: str) -> Condition:
    """Read a filter.

    Raises:
        UserError: it is none; the message points at the character.
    """
    return _Parser(text).whole()


def require_columns(conditions: Iterable[Condition], known: Sequence[str], where: str) -> None:
    """Refuse a filter by a column that there is not.

    Args:
        where: what has the known columns: "the input".

    Raises:
        UserError: naming the columns there are.
    """
    for condition in conditions:
        for column in sorted(condition.columns() - set(known)):
            raise UserError(
                f"--filter {str(condition)!r}: {where} has no column {column!r}; it has {column_list(known)}"
            )


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    """By recursive descent: or, and, not, comparison."""

    def __init__(self, text: str):
        self._text = text
        self._tokens = list(self._split())
        self._next, self._depth = 0, 0

    def whole(self) -> Condition:
        found = self._or()
        if self._peek().kind != "end":
            raise self._error("'and' or 'or'")
        return found

    def _split(self) -> Iterable[_Token]:
        at, end = 0, len(self._text.rstrip())
        while at < end:
            match = _TOKEN.match(self._text, at)
            if match is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise self._wrong(at, "a column, a comparison, a number or a quoted text")
            kind = str(match.lastgroup)
            yield _Token(kind, match[kind], match.start(kind))
            at = match.end()
        yield _Token("end", "", end)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, kind: str, *texts: str) -> _Token | None:
        token = self._peek()
        if token.kind != kind or (texts and token.text not in texts):
            return None
        self._next += 1
        return token

    def _or(self) -> Condition:
        parts = [self._and()]
        while self._take("name", "or"):
            parts.append(self._and())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _and(self) -> Condition:
        parts = [self._unary()]
        while self._take("name", "and"):
            parts.append(self._unary())
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def _unary(self) -> Condition:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong(self._peek().at, f"at most {_DEEPEST} brackets and `not` within each other")
        if self._take("name", "not"):
            found: Condition = Not(self._unary())
        elif self._take("bracket", "("):
            found = self._or()
            if not self._take("bracket", ")"):
                raise self._error("')'")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> Condition:
        column = None if self._peek().text in _WORDS else self._take("name")
        if column is None:
            raise self._error("a column, 'not' or '('")
        compare = self._take("operator")
        if compare is None:
            raise self._error(f"one of {' '.join(_COMPARE)}")
        value = self._take("number") or self._take("text")
        if value is None or (value.kind == "number" and not math.isfinite(float(value.text))):
            raise self._wrong((value or self._peek()).at, "a number or a quoted text")
        return Comparison(column.text.strip("`"), compare.text, _literal(value))

    def _error(self, wanted: str) -> UserError:
        return self._wrong(self._peek().at, wanted)

    def _wrong(self, at: int, wanted: str) -> UserError:
        found = repr(self._text[at : at + 10].split()[0]) if self._text[at:].strip() else "the end"
        return UserError(f"--filter {self._text!r}: expected {wanted} at character {at + 1}, not {found}")


def _literal(token: _Token) -> float | int | str:
    if token.kind == "text":
        return token.text[1:-1]
    return int(token.text) if re.fullmatch(r"[-+]?\d+", token.text) else float(token.text)
