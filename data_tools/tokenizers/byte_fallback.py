"""A byte-fallback BPE written as byte-level BPE, for an engine that knows only the latter: other tokens, the same ids.

In the former a character of the vocabulary is a token, and any other becomes its bytes, which no merge joins. In the
latter every character is bytes at first. So the bytes of each character of the vocabulary are joined from left to right
by merges of their own, before all merges of the file. UTF-8 begins no character with a byte that another one has in its
middle, so that these merges never reach from one character into the next. What begins like a character of the
vocabulary and ends as another stays a beginning, which has no id in the file: it becomes its bytes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.tokenizers.byte_level import LETTERS
from data_tools.tokenizers.tokenizer_formats import Ids

_LONGEST_BEGINNING = 3
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


class Translation(NamedTuple):
    """A tokenizer.json as byte-level BPE, and the way back to its own ids.

    Attributes:
        content: of the tokenizer.json that an engine is given.
        ids: (tokens of `content`, 3) uint32, the own ids of each token, from the left.
        sizes: (tokens of `content`,) int64, how many own ids each token has.
    """

    content: dict[str, Any]
    ids: NDArray[np.uint32]
    sizes: NDArray[np.int64]

    def own(self, found: Ids) -> Ids:
        """The ids of the file for those that an engine gave with `content`."""
        tokens, lengths = found
        sizes = self.sizes[tokens]
        if sizes.max(initial=1) == 1:
            return self.ids[tokens, 0], lengths
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        last = np.concatenate([[0], ends])[np.cumsum(lengths, dtype=np.int64)]
        return self.ids[np.repeat(tokens, sizes), within], np.diff(last, prepend=0).astype(np.int32)


def is_byte_fallback(content: Mapping[str, Any]) -> bool:
    """Whether the model of a tokenizer.json falls back to bytes."""
    return content["model"].get("byte_fallback") is True


def as_byte_level(content: Mapping[str, Any]) -> Translation:
    """Write a byte-fallback BPE as byte-level BPE.

    Whatever is not of the model or the pre-tokenizer stays as it is, for `unsupported_property` to look at.

    Raises:
        ValueError: it cannot be written so; the message names the property.
    """
    model = content["model"]
    if model.get("type") != "BPE":
        raise ValueError(f"model.type: {model.get('type')!r}")
    if model.get("ignore_merges"):
        raise ValueError("model.ignore_merges beside byte_fallback")
    if any(not token.get("special") for token in content.get("added_tokens") or []):
        raise ValueError("added tokens that texts may hold, beside byte_fallback")
    vocabulary: dict[str, int] = model["vocab"]
    merges = [_pair(merge) for merge in model["merges"]]
    _check_merges(merges, vocabulary)
    characters = sorted(token for token in vocabulary if len(token) == 1)
    known = {token.encode(): vocabulary[token] for token in [*characters, *map("".join, merges)]}
    own = {**_byte_ids(vocabulary), **known}
    pairs = [*_joins(characters), *((left.encode(), right.encode()) for left, right in merges)]
    tokens = list(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *map(b"".join, pairs)]))
    return Translation(_content(content, tokens, pairs), *_table(tokens, own))


def _byte_ids(vocabulary: Mapping[str, int]) -> dict[bytes, int]:
    try:
        return {bytes([byte]): vocabulary[token] for byte, token in enumerate(_BYTE_TOKENS)}
    except KeyError as error:
        raise ValueError(f"model.vocab without {error}") from None


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _check_merges(merges: list[tuple[str, str]], vocabulary: Mapping[str, int]) -> None:
    if len(set(merges)) < len(merges):
        raise ValueError("model.merges that are there twice")
    byte_tokens = set(_BYTE_TOKENS)
    made = {*filter(lambda token: len(token) == 1, vocabulary), *map("".join, merges)}
    for pair in merges:
        for token in (*pair, "".join(pair)):
            # A token that nothing makes has no merges here either, and a byte's token stands for no six characters.
            if token not in vocabulary or token not in made or token in byte_tokens:
                raise ValueError(f"a merge of {token!r}")


def _joins(characters: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Merges that join the bytes of each character, from the left."""
    encoded = map(str.encode, characters)
    return list(dict.fromkeys((one[:at], one[at : at + 1]) for one in encoded for at in range(1, len(one))))


def _content(content: Mapping[str, Any], tokens: list[bytes], pairs: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    def spelt(token: bytes) -> str:
        return "".join(map(LETTERS.__getitem__, token))

    splits = content.get("pre_tokenizer")
    steps = splits["pretokenizers"] if isinstance(splits, dict) and splits.get("type") == "Sequence" else [splits]
    return {
        **content,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, _BYTE_LEVEL]},
        "model": {
            **content["model"],
            "byte_fallback": False,
            "vocab": {spelt(token): number for number, token in enumerate(tokens)},
            "merges": [[spelt(left), spelt(right)] for left, right in pairs],
        },
    }


def _table(tokens: list[bytes], own: Mapping[bytes, int]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    ids: NDArray[np.uint32] = np.zeros((len(tokens), _LONGEST_BEGINNING), np.uint32)
    sizes: NDArray[np.int64] = np.ones(len(tokens), np.int64)
    for number, token in enumerate(tokens):
        # The beginning of a character has no id of its own.
        parts = [own[token]] if token in own else [own[bytes([byte])] for byte in token]
        ids[number, : len(parts)] = parts
        sizes[number] = len(parts)
    return ids, sizes
