"""The kind of tokenizer.json that a faster engine implements: byte-level BPE, and nothing that it would pass over.

This is a list of what is allowed, key by key. An engine ignores what it does not know, so that any other key or value,
also one that the format will get some day, might change ids without an error.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Accepts = Callable[[Any], bool]


def unsupported_property(content: Mapping[str, Any]) -> str | None:
    """The first property of a tokenizer.json, in words, that is not byte-level BPE as below; None where there is none.

    What is allowed: BPE over the 256 bytes without dropout, prefixes or suffixes; no normalizer or normal form C; one
    or more isolating splits by regular expressions before a ByteLevel that splits no more, or ByteLevel's own split;
    post-processors that add only tokens which are never asked for; added tokens that are found wherever they are
    spelt out. A regular expression that the engine does not know, it refuses itself.
    """
    return (
        _odd(content, _TOP_LEVEL, "")
        or _odd(content["model"], _MODEL, "model.")
        or _odd_pre_tokenizer(content["pre_tokenizer"])
        or _odd_added_tokens(content["added_tokens"] or [], content["normalizer"] is not None)
    )


def _is(*values: Any) -> Accepts:
    # 0 and False are equal, and different in the file.
    return lambda found: any(found is value or (type(found) is type(value) and found == value) for value in values)


def _anything(found: Any) -> bool:
    return True


def _is_normalizer(found: Any) -> bool:
    if found is None or found == {"type": "NFC"}:
        return True
    return (
        isinstance(found, dict)
        and found.keys() == {"type", "normalizers"}
        and found["type"] == "Sequence"
        and isinstance(found["normalizers"], list)
        and all(map(_is_normalizer, found["normalizers"]))
    )


def _is_post_processor(found: Any) -> bool:
    if found is None:
        return True
    if not isinstance(found, dict):
        return False
    if found.get("type") == "Sequence":
        processors = found.get("processors")
        return isinstance(processors, list) and all(map(_is_post_processor, processors))
    return found.get("type") in ("ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing")


_HIDDEN = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
# How GPT-2's byte-level alphabet spells each byte: what is printable in Latin-1 stands for itself, others move up.
LETTERS = [chr(256 + _HIDDEN.index(byte)) if byte in _HIDDEN else chr(byte) for byte in range(256)]


# An engine has an array over all ids, also those that no token has.
_MOST_UNUSED_IDS = 1 << 20


def _is_vocabulary(found: Any) -> bool:
    """All bytes are tokens, and there are not many more ids than tokens."""
    if not isinstance(found, dict) or not found.keys() >= set(LETTERS):
        return False
    return all(isinstance(number, int) for number in found.values()) and max(found.values()) < (
        len(found) + _MOST_UNUSED_IDS
    )


# Truncation and padding are turned off, the decoder encodes nothing.
_TOP_LEVEL: dict[str, Accepts] = {
    "version": _is("1.0"),
    "truncation": _anything,
    "padding": _anything,
    "added_tokens": lambda found: found is None or isinstance(found, list),
    "normalizer": _is_normalizer,
    "pre_tokenizer": lambda found: isinstance(found, dict),
    "post_processor": _is_post_processor,
    "decoder": _anything,
    "model": lambda found: isinstance(found, dict),
}
# Over all bytes nothing is unknown.
_MODEL: dict[str, Accepts] = {
    "type": _is("BPE"),
    "dropout": _is(None, 0.0),
    "unk_token": _anything,
    "continuing_subword_prefix": _is(None, ""),
    "end_of_word_suffix": _is(None, ""),
    "fuse_unk": _anything,
    "byte_fallback": _is(False),
    "ignore_merges": _is(False, True),
    "vocab": _is_vocabulary,
    "merges": lambda found: isinstance(found, list),
}
_SPLIT: dict[str, Accepts] = {
    "type": _is("Split"),
    "pattern": lambda found: isinstance(found, dict) and found.keys() == {"Regex"},
    "behavior": _is("Isolated"),
    "invert": _is(False),
}
_BYTE_LEVEL: dict[str, Accepts] = {
    "type": _is("ByteLevel"),
    "add_prefix_space": _is(False),
    "trim_offsets": _is(False, True),
    "use_regex": _is(True),
}
_ADDED_TOKEN: dict[str, Accepts] = {
    "id": lambda found: isinstance(found, int),
    "content": lambda found: isinstance(found, str) and found != "",
    "special": _is(False),
    "single_word": _is(False),
    "lstrip": _is(False),
    "rstrip": _is(False),
    "normalized": _is(False, True),
}
# A special token is never found in a text, so that it does not matter where it would be.
_SPECIAL_TOKEN = {**_ADDED_TOKEN, "special": _is(True), **dict.fromkeys(("single_word", "lstrip", "rstrip"), _anything)}
# What a file may leave out, and its library then takes.
_DEFAULTS = {
    "truncation": None,
    "padding": None,
    "added_tokens": None,
    "normalizer": None,
    "post_processor": None,
    "decoder": None,
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "use_regex": True,
}


def _odd(found: Any, allowed: Mapping[str, Accepts], name: str) -> str | None:
    if not isinstance(found, dict):
        return name.rstrip(".") or "content"
    if unknown := sorted(found.keys() - allowed.keys()):
        return f"{name}{unknown[0]}"
    for key, accepts in allowed.items():
        if key not in found and key not in _DEFAULTS:
            return f"no {name}{key}"
        if not accepts(found.get(key, _DEFAULTS.get(key))):
            value = found[key]
            return f"{name}{key}" if isinstance(value, (dict, list)) else f"{name}{key}: {value!r}"
    return None


def _odd_pre_tokenizer(found: Mapping[str, Any]) -> str | None:
    if found.get("type") != "Sequence":
        return _odd(found, _BYTE_LEVEL, "pre_tokenizer.")
    if odd := _odd(
        found, {"type": _anything, "pretokenizers": lambda steps: isinstance(steps, list)}, "pre_tokenizer."
    ):
        return odd
    *splits, last = found["pretokenizers"] or [None]
    if not splits:
        return "pre_tokenizer without Split"
    odds = [_odd(split, _SPLIT, "pre_tokenizer.Split.") for split in splits]
    odds.append(_odd(last, {**_BYTE_LEVEL, "use_regex": _is(False)}, "pre_tokenizer.ByteLevel."))
    return next(filter(None, odds), None)


def _odd_added_tokens(tokens: Sequence[Any], normalizes: bool) -> str | None:
    for token in tokens:
        special = isinstance(token, dict) and token.get("special") is True
        if odd := _odd(token, _SPECIAL_TOKEN if special else _ADDED_TOKEN, "added token's "):
            return f"{odd} ({token.get('content')!r})" if isinstance(token, dict) else odd
        if normalizes and not unicodedata.is_normalized("NFC", token["content"]):
            return f"an added token that is not in normal form C ({token['content']!r})"
    found = [token["content"] for token in tokens if not token["special"]]
    hidden = [token["content"] for token in tokens if token["special"]]
    if len(set(found)) + len(set(hidden)) < len(tokens) or set(found) & set(hidden):
        return "an added token that is there twice"
    # Those that are normalised are looked for after the others, and only in the text between them.
    if len({token["normalized"] for token in tokens if not token["special"]}) > 1:
        return "added tokens of which only some are normalised"
    pairs = ((special, token) for special in hidden for token in found if _hides(special, token))
    return next(
        (f"an added token ({token!r}) that overlaps a special one ({special!r})" for special, token in pairs), None
    )


def _hides(special: str, token: str) -> bool:
    """Whether the library passes over a token, because it begins within a special one, which then stays text."""
    return token in special or any(token.startswith(special[at:]) for at in range(1, len(special)))
