"""Faster encoders than a tokenizer's own library, and the proof that they give the same ids on the texts at hand.

No engine here is trusted. It is given only files whose every property it implements (`byte_level.py`); and since
Unicode tables, normalisation and regular expressions differ between libraries in corners that no list of properties
shows, equality is proven on the sample and on the strings below.
"""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from data_tools.tokenizers.byte_fallback import Translation, as_byte_level, is_byte_fallback
from data_tools.tokenizers.byte_level import unsupported_property
from data_tools.tokenizers.tiktoken_files import KNOWN
from data_tools.tokenizers.tokenizer_formats import HuggingFace, Ids, Reference, Tiktoken, join_arrays, reason_of
from data_tools.tokenizers.unicode_tables import has_unassigned
from megatron_kaiyuan.errors import UserError, install_command

# Texts that tell engines apart, and that a sample of a few megabytes may lack.
_CORNERS = (
    " leading and trailing  ",
    "\t\ttabs\r\n\r\n lines \n\n\n  \n",
    "don't DON'T we'LL ’s it'ſ",
    "1234567 ½ Ⅳ ² ٣٤",
    "e\u0301 Å ﬁ \ufeff \u200d \u00a0 \u3000 \u2028 \x85 \x00 \x1f",
    "你好，世界。繁體字 𠮷 ひらがな 한국어 ไทย हिन्दी עברית",
    "🙂‍↔️ 👩‍👩‍👧‍👦 🇨🇳",
    "x" * 3000,
    "中文" * 1500,
    "<s></s><unk>▁ ▁▁<0x41>",
)
_SHOWN = 40
# More tokens, which are as a rule numbered ones, show nothing else.
_MOST_SIMILAR = 512
# gigatoken has a scanner for each of these patterns and no general one.
_GIGATOKEN_SCHEMES = {"r50k_base": "r50k", "cl100k_base": "cl100k", "o200k_base": "o200k", "qwen": "qwen2"}


class Unsupported(Exception):
    """An engine cannot take a tokenizer; the message says why."""


class TokenizerEngine(Protocol):
    """What turns texts into ids; a `Reference` is one too."""

    name: str

    def encode(self, texts: Sequence[str]) -> Ids: ...


class Gigatoken:
    """gigatoken, on the calling thread: processes are the parallelism here.

    A sample is unlikely to hold the few texts on which two versions of Unicode, or two implementations of its normal
    forms, may disagree: see `depends_on_tables`. Those are composed by the reference where that is enough, and else
    encoded by it.
    """

    name = "gigatoken"

    def __init__(self, reference: Reference):
        library = _import("gigatoken")
        self._reference = reference
        self._translation: Translation | None = None
        try:
            if isinstance(reference, HuggingFace) and is_byte_fallback(reference.content):
                self._translation = _translated(reference)
            self._tokenizer: Any = _gigatoken_for(library, reference, self._translation)
        except Unsupported:
            raise
        except BaseException as error:
            raise Unsupported(reason_of(error)) from None

    def encode(self, texts: Sequence[str]) -> Ids:
        ready = [self._ready(text) for text in texts]
        doubtful = np.fromiter((text is None for text in ready), np.bool_, len(texts))
        tokens, lengths = self._encode([text for text in ready if text is not None])
        if not doubtful.any():
            return tokens, lengths
        slow, slow_lengths = self._reference.encode([texts[i] for i in np.flatnonzero(doubtful).tolist()])
        all_lengths: NDArray[np.int32] = np.empty(len(texts), np.int32)
        all_lengths[~doubtful], all_lengths[doubtful] = lengths, slow_lengths
        of_doubtful: NDArray[np.bool_] = np.repeat(doubtful, all_lengths)
        all_tokens: NDArray[np.uint32] = np.empty(len(of_doubtful), np.uint32)
        all_tokens[~of_doubtful], all_tokens[of_doubtful] = tokens, slow
        return all_tokens, all_lengths

    def _ready(self, text: str) -> str | None:
        """What to give the engine for a text; None where only the reference is sure to know."""
        if not depends_on_tables(text):
            return text
        composed = self._reference.composed(text) if isinstance(self._reference, HuggingFace) else None
        return None if composed is None or depends_on_tables(composed) else composed

    def _encode(self, texts: Sequence[str]) -> Ids:
        # One by one: for a batch the library imports awkward, which takes longer than the proof's sample.
        found = join_arrays([self._tokenizer.encode(text) for text in texts])
        return self._translation.own(found) if self._translation else found


def depends_on_tables(text: str) -> bool:
    """Whether a text may be normalised or cut differently by libraries with Unicode tables of different age.

    True for text outside normal form C, and for characters that this Python's Unicode does not assign: their
    category, combining class and compositions are known to newer libraries only. In normal form C all libraries keep
    the text as it is, and the properties of an assigned character hardly ever change.
    """
    if text.isascii():
        return False
    if not unicodedata.is_normalized("NFC", text):
        return True
    return has_unassigned(text)


# The fastest first.
ENGINES: dict[str, Callable[[Reference], TokenizerEngine]] = {Gigatoken.name: Gigatoken}


def build(name: str, reference: Reference) -> TokenizerEngine:
    """The engine of that name, or the reference.

    Raises:
        UserError: the name is unknown.
        Unsupported: the engine is not installed, or cannot take this tokenizer.
    """
    if name == "reference":
        return reference
    if name not in ENGINES:
        raise UserError(f"--tokenizer-engine {name}: is not known; use auto, reference, {', '.join(ENGINES)}")
    return ENGINES[name](reference)


def names(wanted: str) -> list[str]:
    """The engines that may be used beside the reference, the fastest first, when `wanted` is asked for."""
    return [] if wanted == "reference" else list(ENGINES) if wanted == "auto" else [wanted]


class EngineChoice(NamedTuple):
    """The engine to use, and in words why it is the one."""

    name: str
    reason: str


# Where an engine of that name first differs from the reference on texts, in words; None where it does not.
Compare = Callable[[str, Sequence[str]], "str | None"]


def choose(wanted: str, reference: Reference, texts: Sequence[str], compare: Compare) -> EngineChoice:
    """The fastest engine ("auto"), or the one asked for, whose ids equal the reference's on the texts.

    Raises:
        UserError: an engine was asked for by name, and it cannot be used or its ids differ.
    """
    refused = []
    for name in names(wanted):
        try:
            difference = compare(name, texts)
        except Unsupported as error:
            refused.append(f"{name} cannot be used: {error}")
            continue
        if difference is None:
            size = sum(len(text.encode()) for text in texts) / 1e6
            proof = f"engine: {name}, its ids equal those of {reference.name} on {size:.1f} MB of the texts"
            return EngineChoice(name, "; ".join([proof, *refused]))
        refused.append(f"{name} differs from {reference.name} on {difference}")
    if wanted not in ("auto", "reference"):
        raise UserError(f"--tokenizer-engine {wanted}: {refused[0]}; use --tokenizer-engine auto or reference")
    return EngineChoice("reference", "; ".join([f"engine: {reference.name}", *refused]))


def first_difference(engine: TokenizerEngine, reference: Reference, texts: Sequence[str]) -> str | None:
    """Where an engine's ids first differ from the reference's, in words; None when they are equal.

    Compares the texts, and besides them short strings that are known to tell engines apart, among them the added tokens
    of the tokenizer, and those that look so, in every context in which one may be found or not.
    """
    return corner_difference(engine, reference) or sample_difference(engine, reference, texts)


def corner_difference(engine: TokenizerEngine, reference: Reference) -> str | None:
    """As `first_difference`, of the short strings."""
    similar = [token for token in reference.vocabulary if token[:1] in "<[" and token[-1:] in ">]"]
    literals = list(dict.fromkeys([*reference.added, *similar[:_MOST_SIMILAR]]))
    contexts = [text for token in reference.added[:_MOST_SIMILAR] for text in _contexts(token)]
    neighbours = [
        text for one, other in pairwise(literals) for text in (one + other, one[:-1] + other, one + other[1:])
    ]
    return _difference(
        engine, reference, "a test string", [*_CORNERS, *literals, " ".join(literals), *contexts, *neighbours]
    )


def _contexts(token: str) -> list[str]:
    """Texts that hold a token, or nearly: in words, beside blanks and signs, repeated, cut, at ends, in other case."""
    around = ("", "a", "Z", "1", "_", "中", "é", " ", "  ", "\n", "\r\n", "\t", "\u00a0", ".", "-", "<", "'")
    found = [text for one in around for text in (f"{one}{token}", f"{token}{one}", f"{one}{token}{one}")]
    found += [f"words {token} words", f"x {token}.", token * 3, f"{token} {token}"]
    found += [token[:-1], token[1:], token[:-1] + token, token + token[1:]]
    return found + [f"a {other} b" for other in (token.lower(), token.upper(), token.swapcase(), token.title())]


def sample_difference(
    engine: TokenizerEngine, reference: Reference, texts: Sequence[str], before: int = 0
) -> str | None:
    """As `first_difference`, of the texts, which come after `before` others in the sample."""
    return _difference(engine, reference, "the sample", texts, before)


def _difference(
    engine: TokenizerEngine, reference: Reference, name: str, texts: Sequence[str], before: int = 0
) -> str | None:
    try:
        found = engine.encode(texts)
    except BaseException as error:
        return f"on {name} it fails: {reason_of(error)}"
    try:
        expected = reference.encode(texts)
    except BaseException as error:
        return f"{name}, on which the reference fails: {reason_of(error)}"
    difference = _compare(texts, found, expected, before)
    return difference and f"{name}, {difference}"


def _compare(texts: Sequence[str], found: Ids, expected: Ids, before: int) -> str | None:
    if np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1]):
        return None
    pairs = zip(texts, _split(found), _split(expected), strict=True)
    for number, (text, ours, theirs) in enumerate(pairs, before + 1):
        if not np.array_equal(ours, theirs):
            return _describe(number, text, ours.tolist(), theirs.tolist())
    return "the number of ids differs"


def _describe(number: int, text: str, ours: list[int], theirs: list[int]) -> str:
    shorter = min(len(ours), len(theirs))
    at = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    return (
        f"text {number}, token {at + 1}: {ours[at : at + 5]} where the reference has {theirs[at : at + 5]}; "
        f"the text begins {text[:_SHOWN]!r}"
    )


def _split(ids: Ids) -> list[NDArray[np.uint32]]:
    return np.split(ids[0], np.cumsum(ids[1])[:-1])


def _translated(reference: HuggingFace) -> Translation:
    try:
        return as_byte_level(reference.content)
    except ValueError as error:
        raise _not_implemented(reference, str(error)) from None


def _gigatoken_for(library: Any, reference: Reference, translation: Translation | None) -> Any:
    if isinstance(reference, HuggingFace):
        content = translation.content if translation else reference.content
        if odd := unsupported_property(content):
            raise _not_implemented(reference, odd)
        return library.Tokenizer.from_json(orjson.dumps(_without_special(content)))
    if isinstance(reference, Tiktoken):
        for name, scheme in _GIGATOKEN_SCHEMES.items():
            if reference.file.pattern == KNOWN[name].pattern:
                return library.Tokenizer.from_tiktoken(reference.path, scheme, {})
        raise Unsupported("it has no scanner for this pattern")
    raise Unsupported(f"its ids are not those of {reference.name}, as for control tokens that are spelt out")


def _not_implemented(reference: Reference, odd: str) -> Unsupported:
    return Unsupported(f"it does not implement what {reference.path.name} has: {odd}")


def _without_special(content: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without its special tokens: what an engine does not know, it cannot find in a text."""
    added = [token for token in content.get("added_tokens") or [] if not token.get("special")]
    return {**content, "added_tokens": added}


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise Unsupported(f"it is not installed ({install_command('tokenizers')})") from None
