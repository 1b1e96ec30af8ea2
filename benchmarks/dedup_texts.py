"""Texts for benchmarks of deduplication: what this machine keeps, in documents of one size, and near-copies of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from data_tools.harvesting.harvest_sources import SourceFile, chinese_files, english_files

DOCUMENT_BYTES = 3400
EDIT_RATES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5)


def english_documents(most: int, size: int = DOCUMENT_BYTES) -> list[str]:
    """Python's language reference, docstrings and descriptions of packages."""
    return list(_documents(english_files, most, size))


def chinese_documents(most: int, size: int = DOCUMENT_BYTES) -> list[str]:
    """Translations in the catalogues of packages and of the system."""
    return list(_documents(chinese_files, most, size))


def _documents(files: Callable[[], Iterator[SourceFile]], most: int, size: int) -> Iterator[str]:
    """Different texts of the files one after another, cut at white space to documents of about `size` bytes."""
    seen: set[str] = set()
    held, number = "", 0
    for source in files():
        for _, text in source.read(source.path):
            if text in seen:
                continue
            seen.add(text)
            held += text + "\n\n"
            while len(held.encode()) > size:
                cut = _place_to_cut(held, size)
                yield held[:cut]
                held, number = held[cut:], number + 1
                if number == most:
                    return


def _place_to_cut(text: str, size: int) -> int:
    """Characters of the first `size` bytes, up to white space where there is any in the second half."""
    whole = len(text.encode()[:size].decode(errors="ignore"))
    space = max(text.rfind(" ", whole // 2, whole), text.rfind("\n", whole // 2, whole))
    return space + 1 if space > 0 else whole


def near_copies(originals: list[str], each: int, seed: int = 1) -> list[str]:
    """Copies of `each` originals for every edit rate: that share of words is replaced by words of the texts."""
    generator = np.random.default_rng(seed)
    vocabulary = [word for text in originals[:500] for word in text.split()]
    copies = []
    for rate in EDIT_RATES:
        for original in generator.choice(len(originals), each, replace=False):
            words = originals[original].split()
            for place in generator.choice(len(words), round(rate * len(words)), replace=False):
                words[place] = vocabulary[generator.integers(len(vocabulary))]
            copies.append(" ".join(words))
    return copies


def boilerplate_documents(texts: list[str], bytes_each: int, share: float, seed: int = 2) -> list[str]:
    """Unrelated documents of about `bytes_each`, of which `share` is the same text in all: no pair is a duplicate."""
    shared_bytes = round(share * bytes_each)
    shared = " ".join(texts)[:shared_bytes]
    used = -(-shared_bytes // DOCUMENT_BYTES) + 1
    own = round((bytes_each - shared_bytes) / DOCUMENT_BYTES)
    order = np.random.default_rng(seed).permutation(np.arange(used, len(texts)))
    groups = [order[at : at + own] for at in range(0, len(order) - own + 1, own)]
    return [shared + " " + " ".join(texts[i] for i in group) for group in groups]
