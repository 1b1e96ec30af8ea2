"""Credentials out of everything that is shown or kept: errors, warnings, manifests, bad rows, configuration, trackers.

What is secret: the user information of a URL, values of query keys that name a token, key, password or signature, an
authorization header, and the values of variables of the environment that are named so. Identities are taken of redacted
text, so that a new password or a new signature does not make another input of a file.
"""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_SECRET = (
    r"(?:[\w.-]*(?:token|secret|signature|password|passwd|passphrase|credential|api[_-]?key|access[_-]?key(?:id)?"
    r"|auth[_-]?key|private[_-]?key)|key|sig|pwd|pass|auth|authorization|jwt)"
)
# abfs://container@account names a place, not a user.
_USER = re.compile(r"(?<![A-Za-z])(?!(?:abfss?|wasbs?)://[^:/\s]*@)([A-Za-z][A-Za-z0-9+.-]*://)[^/\s?#]*@", re.I)
_QUERY = re.compile(rf"([?&;#]{_SECRET}=)[^&;#\s'\"\])}}]+", re.I)
_HEADER = re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",}]+", re.I)
_BEARER = re.compile(r"(\bbearer\s+)[\w.~+/=-]{16,}", re.I)
_VARIABLE = re.compile(r"(?:^|_)(?:API_?KEY|ACCESS_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|SECRET_?KEY|KEY)$", re.I)
_FIELD = re.compile(r"(?:password|passwd|secret|api_?key|access_?key|access_token|auth_token|secret_key)$", re.I)
# A shorter value stands in ordinary text by chance.
_SHORTEST = 8


def redact(text: str) -> str:
    """The text with `***` for every credential in it."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _USER.sub(rf"\1{HIDDEN}@", text)
    for pattern in (_QUERY, _HEADER, _BEARER):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def redact_values(values: Any) -> Any:
    """Nested mappings and lists with every text redacted, and whole values of fields that are named as secrets."""
    if isinstance(values, dict):
        return {
            name: HIDDEN if value is not None and _FIELD.search(str(name)) else redact_values(value)
            for name, value in values.items()
        }
    if isinstance(values, list):
        return [redact_values(value) for value in values]
    return redact(values) if isinstance(values, str) else values
