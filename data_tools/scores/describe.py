"""The kinds of scorers with their settings, for people."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from data_tools.scores import kinds
from data_tools.scores.parse import kind_names


def scorer_lines() -> Iterator[str]:
    """A kind a paragraph: how it is written, what it gives, and what its settings mean."""
    for kind in kind_names():
        cls = importlib.import_module(f"{kinds.__name__}.{kind}").SCORER
        yield _form(kind, cls)
        yield from (f"    {line}".rstrip() for line in (inspect.getdoc(cls) or "").splitlines())
        yield ""


def _form(kind: str, cls: Any) -> str:
    """`linear=MODEL[,label=...,name=linear]`."""
    words, optional = kind, []
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            words += f"={field.name.upper()}"
        else:
            optional.append(f"{field.name}={'...' if field.default in (None, '') else field.default}")
    return words + (f"[,{','.join(optional)}]" if optional else "")
