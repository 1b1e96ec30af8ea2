"""Tokenizer files and the library that defines what each of them means: the reference for every faster engine.

A tokenizer.json is read by Hugging Face tokenizers, a sentencepiece model by sentencepiece, a tiktoken rank file by
tiktoken. All three leave special tokens that are spelt out in a text as ordinary text.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer

from data_tools.reading.listing import require_regular
from data_tools.tokenizers.byte_level import LETTERS
from data_tools.tokenizers.special_tokens import hide_special
from data_tools.tokenizers.tiktoken_files import RANK_LINE, TiktokenFile, read_tiktoken
from data_tools.tokenizers.unicode_tables import has_unassigned
from megatron_kaiyuan.errors import UserError, excerpt, install_command
from megatron_kaiyuan.files import checksum, require_utf8
from megatron_kaiyuan.forms import Form, require_form
from megatron_kaiyuan.tokenizer_trial import is_panic, read_tokenizer

# The ids of all texts, one after another, and how many each text has.
Ids = tuple[NDArray[np.uint32], NDArray[np.int32]]


class _Added(Form):
    id: Annotated[int, Field(ge=0, lt=1 << 31)]
    content: str
    special: bool = False


class _TokenizerJson(Form):
    added_tokens: list[_Added] | None = None


class Reference(Protocol):
    """A tokenizer as its own library sees it.

    Attributes:
        name: the library, for messages.
        path: the file it was read from.
        vocabulary: id of each token by its text; the bytes of a token that is no text stand as the library shows them.
        vocab_size: the largest id + 1.
        byte_ids: ids of tokens that are one byte which alone is no character.
        added: tokens that are found whole in a text, or never, whatever the model makes of it; the former first.
        own_end: the token that the file itself, or what describes it, names as the end of a document; else None.
    """

    name: str
    path: Path
    vocabulary: dict[str, int]
    vocab_size: int
    byte_ids: list[int]
    added: list[str]
    own_end: str | None

    def encode(self, texts: Sequence[str]) -> Ids: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def decode_batch(self, texts: Sequence[Sequence[int]]) -> list[str]: ...

    def fingerprint(self) -> str: ...


def open_reference(path: Path, eod_token: str | None = None) -> Reference:
    """Read a tokenizer.json, a sentencepiece model or a tiktoken file, or the folder that holds one of them.

    What other files of the folder name as the end of a document is not looked at (`end_of_document.py`).

    Args:
        eod_token: a token that is to be special, whatever the file says, so that no text can contain it.

    Raises:
        UserError: there is none, it cannot be read, or the library that reads it is not installed.
    """
    path = tokenizer_file(path)
    if path.suffix == ".json":
        return HuggingFace(path, eod_token)
    with open(path, "rb") as file:
        start = file.read(1 << 12)
    if RANK_LINE.match(start):
        return Tiktoken(path)
    return SentencePiece(path)


class HuggingFace:
    """tokenizer.json; the special tokens that it names are never found in texts."""

    name = "Hugging Face tokenizers"

    def __init__(self, path: Path, eod_token: str | None = None):
        self.path = path
        self.own_end: str | None = None
        self.content = _read_tokenizer_json(path)
        _make_special(self.content, eod_token)
        self.vocabulary = _vocabulary(path, self.content)
        self.vocab_size = max(self.vocabulary.values(), default=-1) + 1
        self.byte_ids = [self.vocabulary[token] for token in _byte_tokens(self.content) if token in self.vocabulary]
        added = sorted(self.content.get("added_tokens") or [], key=lambda token: bool(token.get("special")))
        self.added = [token["content"] for token in added]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """Made when it is needed: a worker that encodes with a faster engine never needs it, and it loads slowly."""
        tokenizer = read_tokenizer(self.path, orjson.dumps(self.content).decode())
        # The model's own tokens are read as they stand; the library numbers added ones itself.
        added = {token["content"]: token["id"] for token in self.content.get("added_tokens") or []}
        same_size = tokenizer.get_vocab_size(with_added_tokens=True) == len(self.vocabulary)
        if not same_size or any(tokenizer.token_to_id(token) != number for token, number in added.items()):
            raise _unreadable(self.path, ValueError("added tokens have ids that the library does not give them"))
        return _without_extras(tokenizer)

    @cached_property
    def _encoder(self) -> Tokenizer:
        hidden = hide_special(self.content)
        if not hidden:
            return self._tokenizer
        return _without_extras(read_tokenizer(self.path, orjson.dumps(hidden).decode()))

    def encode(self, texts: Sequence[str]) -> Ids:
        encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return flatten(encoding.ids for encoding in encodings)

    def composed(self, text: str) -> str | None:
        """The text in normal form C as this library knows it, which gets the same ids; None where that is not sure.

        The library looks for added tokens before or after it composes, and then composing might add or break one.
        """
        if self.content.get("normalizer") != {"type": "NFC"}:
            return None
        composed: str = self._tokenizer.normalizer.normalize_str(text)
        added = [token["content"] for token in self.content.get("added_tokens") or []]
        return None if any(token in text or token in composed for token in added) else composed

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def decode_batch(self, texts: Sequence[Sequence[int]]) -> list[str]:
        return self._tokenizer.decode_batch([list(ids) for ids in texts], skip_special_tokens=False)

    def fingerprint(self) -> str:
        return checksum(self.path)


class SentencePiece:
    """A sentencepiece model; its normalisation may make the round trip of a text lossy."""

    name = "sentencepiece"

    def __init__(self, path: Path):
        try:
            import sentencepiece
        except ImportError as error:
            raise _not_installed(path, "sentencepiece") from error
        self.path = path
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(path.read_bytes())
            self.vocab_size = self._processor.GetPieceSize()
        except Exception as error:  # the library raises what its binding makes of a C++ status
            raise UserError(
                f"{path}: neither a tokenizer.json, nor a sentencepiece model, nor a tiktoken file; check the path"
            ) from error
        self.vocabulary = {self._processor.IdToPiece(token): token for token in range(self.vocab_size)}
        self.byte_ids = [token for token in range(self.vocab_size) if self._processor.IsByte(token)]
        end = self._processor.eos_id()
        self.own_end = self._processor.IdToPiece(end) if end >= 0 else None
        self.added = [piece for piece, token in self.vocabulary.items() if self._processor.IsControl(token)]

    def encode(self, texts: Sequence[str]) -> Ids:
        return flatten(self._processor.encode(list(texts), out_type=int, num_threads=1))

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token) for token in ids])

    def decode_batch(self, texts: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(ids) for ids in texts]

    def fingerprint(self) -> str:
        return checksum(self.path)


class Tiktoken:
    """A tiktoken rank file, with the pattern and special tokens that `read_tiktoken` finds for it."""

    name = "tiktoken"

    def __init__(self, path: Path):
        try:
            import tiktoken
        except ImportError as error:
            raise _not_installed(path, "tiktoken") from error
        self.path = path
        self.file: TiktokenFile = read_tiktoken(path)
        try:
            self._encoding = tiktoken.Encoding(
                path.name,
                pat_str=self.file.pattern,
                mergeable_ranks=self.file.ranks,
                special_tokens=self.file.special_tokens,
            )
            # A pattern that finds empty pieces is seen here only.
            self._encoding.encode_to_numpy("two words\n", disallowed_special=())
        except BaseException as error:  # a pattern its engine cannot compile, or a panic
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise UserError(
                f"{path}: tiktoken refuses its ranks or pattern ({excerpt(error)}); check the files"
            ) from error
        shown = {token.decode("utf-8", "backslashreplace"): rank for token, rank in self.file.ranks.items()}
        self.vocabulary = {**shown, **self.file.special_tokens}
        self.vocab_size = self._encoding.max_token_value + 1
        self.byte_ids = [rank for token, rank in self.file.ranks.items() if len(token) == 1 and token >= b"\x80"]
        self.own_end = self.file.end
        self.added = list(self.file.special_tokens)

    def encode(self, texts: Sequence[str]) -> Ids:
        return join_arrays([self._encode(text) for text in texts])

    def _encode(self, text: str) -> NDArray[np.uint32]:
        # Nothing allowed and nothing disallowed: special tokens that are spelt out are ordinary text.
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError as error:
            return self._encode_pieces(text, error)

    def _encode_pieces(self, text: str, error: ValueError) -> NDArray[np.uint32]:
        """Ids of a text on which the library's regular expressions gave up, as on a run of a million blanks.

        `regex`, in which tiktoken's own teaching code runs the same patterns, finds the pieces instead: the same ones
        for every assigned character.
        """
        import regex

        try:
            pattern = regex.compile(self.file.pattern)
        except regex.error:
            raise error from None
        if has_unassigned(text):
            raise error
        pieces = (match.group().encode() for match in pattern.finditer(text))
        return np.array([rank for piece in pieces for rank in self._encoding._encode_single_piece(piece)], np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([int(token) for token in ids])

    def decode_batch(self, texts: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(ids) for ids in texts]

    def fingerprint(self) -> str:
        """Covers the pattern and the special tokens too, wherever they come from."""
        rest = json.dumps([self.file.pattern, sorted(self.file.special_tokens.items())])
        return f"xxh3:{xxhash.xxh3_128((checksum(self.path) + rest).encode()).hexdigest()}"


def reason_of(error: BaseException) -> str:
    """What a library said when it gave up, in one line. Panics of Rust code are no `Exception`.

    Raises:
        BaseException: the error itself, where it is an interrupt or a lack of memory.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)):
        raise error
    return " ".join(str(error).split())[:200] or type(error).__name__


def flatten(lists: Iterable[list[int]]) -> Ids:
    """One array of all lists. `array` converts a list several times faster than NumPy does."""
    flat, lengths = array("I"), array("i")
    for ids in lists:
        flat.extend(array("I", ids))
        lengths.append(len(ids))
    return np.frombuffer(flat, np.uint32), np.frombuffer(lengths, np.int32)


def join_arrays(parts: Sequence[NDArray[np.uint32]]) -> Ids:
    """One array of all."""
    lengths = np.fromiter(map(len, parts), np.int32, len(parts))
    return np.concatenate([np.zeros(0, np.uint32), *parts], dtype=np.uint32), lengths


def tokenizer_file(path: Path) -> Path:
    """The file itself, or that of a Hugging Face folder; tokenizer.json first, for it holds the most.

    Raises:
        UserError: there is none, or its path is not UTF-8.
    """
    found = [path]
    if path.is_dir():
        found = [path / "tokenizer.json", path / "tokenizer.model", *sorted(path.glob("*.tiktoken"))]
    for file in found:
        if file.exists():
            require_utf8(str(file))
            require_regular(str(file), file.stat().st_mode)
            return file
    raise UserError(f"{found[0]}: tokenizer not found; make one with `kaiyuan-data tokenizer train`")


def _read_tokenizer_json(path: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise _unreadable(path, ValueError("it has no 'model'"))
    require_form(path, content, _TokenizerJson, "make or copy it again")
    return content


def _vocabulary(path: Path, content: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the model's tokens and of the added ones; a unigram model lists its tokens in the order of their ids."""
    model = content["model"].get("vocab", {})
    try:
        found = {token: at for at, (token, _) in enumerate(model)} if isinstance(model, list) else dict(model)
        found.update((added["content"], added["id"]) for added in content.get("added_tokens") or [])
    except (TypeError, ValueError, KeyError) as error:
        raise _unreadable(path, ValueError(f"its vocabulary is broken: {error}")) from error
    if not all(
        isinstance(token, str) and type(number) is int and 0 <= number < 1 << 31 for token, number in found.items()
    ):
        raise _unreadable(path, ValueError("its vocabulary has ids that are not numbers from 0 to 2^31 - 1"))
    return found


def _make_special(content: dict[str, Any], token: str | None) -> None:
    """Make an added token special, in case the file only calls it an added one."""
    for added in content.get("added_tokens") or []:
        if isinstance(added, dict) and added.get("content") == token:
            added["special"] = True


def _without_extras(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _byte_tokens(content: Mapping[str, Any]) -> list[str]:
    if content["model"].get("byte_fallback"):
        return [f"<0x{byte:02X}>" for byte in range(256)]
    if '"ByteLevel"' not in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        return []
    return LETTERS[0x80:]


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = re.sub(r"\s+", " ", str(error))
    return UserError(f"{path}: not a readable tokenizer.json ({reason}); make or copy it again")


def _not_installed(path: Path, package: str) -> UserError:
    return UserError(f"{path}: to read it, install {package} ({install_command('tokenizers')})")
