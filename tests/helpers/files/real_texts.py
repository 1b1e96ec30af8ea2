"""Documents of this machine: Python's library, with the odd characters that scorers meet."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

ODD = (
    "",
    " \t\n ",
    "one",
    "The quick brown fox jumps over the lazy dog. It was not amused, and said so!",
    "你好，世界。这是一个测试！我们看看。",
    "Größe und Straße, élève à l'école — naïve “quotes” … ok",
    "नमस्ते दुनिया। यह एक परीक्षण है।",
    "مرحبا بالعالم؟ هذا اختبار۔",
    "a\0b\x0bc\x0cd\re",
    "before </s> after it nothing counts",
    "word __label__hq __label__unknown __label__ word",
    "no\u00a0break\u2003em\u3000wide spaces",
    "🙂 emoji 👩‍👩‍👧 joined",
    "İstanbul ǆ ﬁ K",
    "x" * 5000,
    "- one\n- two\n• three\n...\nfour…\n\nfour…\n",
)


@functools.cache
def real_texts(count: int) -> tuple[str, ...]:
    """Sources of Python's library, the odd ones first."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return (*ODD, *(file.read_text(encoding="utf-8")[:20_000] for file in files if file.stat().st_size > 500))[:count]


def batch_of(texts: Sequence[str | None], **columns: Sequence[object]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"text": pa.array(texts, type=pa.large_string()), **columns})
