"""Mask personal data in documents: e-mail addresses, public IP addresses, telephone numbers.

Patterns find what is written in the usual way and miss the rest ("jane at example dot org"); a masked corpus is not an
anonymous one. Each pattern is bounded at every place where it may begin, so that the time is linear in the text.

- email: ASCII addresses with a dot in the domain.
- ip: IPv4 and IPv6 addresses that the Internet routes. Private, loopback and reserved ones name no one and stay; so do
  longer dotted numbers, but a version such as 8.1.2.3 is taken for an address.
- phone: +CC numbers of 8 to 15 digits; North American (NNN) NNN-NNNN and NNN-NNN-NNNN; Chinese mobile numbers of 11
  digits. Other national forms are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_kaiyuan.errors import UserError


class _Kind(NamedTuple):
    pattern: re.Pattern[str]
    is_found: Callable[[str], bool]
    sign: str  # a regular expression for Arrow (RE2), which is quick: a text without it holds none


def _always(found: str) -> bool:
    return True


def _is_public(found: str) -> bool:
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def _is_phone(found: str) -> bool:
    return 8 <= sum(character.isdigit() for character in found) <= 15


# Not right after a mask: what follows one was not found before it was there, so that masking twice changes nothing.
_START = "(?<!<email>)(?<!<ip>)(?<!<phone>)"
_EMAIL = r"(?<![\w.%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
_IPV4 = r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?\w)"
# Eight groups, or at least three and "::", which leaves slices and namespaces of code alone.
_GROUP = r"[0-9A-Fa-f]{1,4}"
_SHORTENED = rf"(?=(?:::)?(?:{_GROUP}::?){{2,6}}{_GROUP})[0-9A-Fa-f:]{{7,39}}"
_IPV6 = rf"(?<![\w:.])(?:(?:{_GROUP}:){{7}}{_GROUP}|{_SHORTENED})(?!\w|[:.]\w)"
_PHONE = (
    r"(?<![\w+.])\+[0-9]{1,3}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){1,4}(?![\w-])"
    r"|(?<![\w.+/-])(?:\([0-9]{3}\) ?|[0-9]{3}[-. ])[0-9]{3}[-. ][0-9]{4}(?![\w-])"
    r"|(?<![\w.+/-])1[3-9][0-9](?:[0-9]{8}|[ -][0-9]{4}[ -][0-9]{4})(?![\w-])"
)
_IP_SIGN = r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]::?[0-9A-Fa-f]{1,4}::?[0-9A-Fa-f]"
_PHONE_SIGN = r"\+[0-9]|[0-9]{3}\)? ?[-. ]?[0-9]{3}[-. ][0-9]{4}|1[3-9][0-9](?:[0-9]{8}|[ -][0-9]{4}[ -][0-9]{4})"
_KINDS = {
    "email": _Kind(re.compile(_START + _EMAIL), _always, "[A-Za-z0-9._%+-]@[A-Za-z0-9-]"),
    "ip": _Kind(re.compile(f"{_START}(?:{_IPV4}|{_IPV6})"), _is_public, _IP_SIGN),
    "phone": _Kind(re.compile(f"{_START}(?:{_PHONE})"), _is_phone, _PHONE_SIGN),
}
KINDS = tuple(_KINDS)


def mask(texts: pa.Array, kinds: Sequence[str] = KINDS) -> tuple[pa.LargeStringArray, dict[str, pa.Int64Array]]:
    """Replace personal data by `<email>`, `<ip>` and `<phone>`; masking twice changes nothing more.

    Args:
        texts: string or large_string; a null stays null.
        kinds: of KINDS, in the order in which they are masked.

    Returns:
        The texts, and by kind how many were replaced in each (0 for a null).

    Raises:
        UserError: a kind is unknown.
    """
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise UserError(f"personal data: unknown kind {unknown[0]!r}; choose from {', '.join(KINDS)}")
    rows = texts.to_pylist()
    counts: dict[str, list[int]] = {kind: [0] * len(rows) for kind in kinds}
    for kind in kinds:
        has_sign = pc.fill_null(pc.match_substring_regex(texts, _KINDS[kind].sign), False)
        for index in np.flatnonzero(has_sign.to_numpy(zero_copy_only=False)):
            rows[index], counts[kind][index] = _mask_text(rows[index], kind)
    return pa.array(rows, type=pa.large_string()), {kind: pa.array(counts[kind], type=pa.int64()) for kind in kinds}


def _mask_text(text: str, kind: str) -> tuple[str, int]:
    pattern, is_found, _ = _KINDS[kind]
    replaced = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal replaced
        if not is_found(match[0]):
            return match[0]
        replaced += 1
        return f"<{kind}>"

    return pattern.sub(replace, text), replaced
