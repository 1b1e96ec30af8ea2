"""The files of a corpus: their names, how a new set replaces an old one, and the manifest that seals them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_kaiyuan.data.indexed import beside, bin_path, idx_path
from megatron_kaiyuan.data.metadata import AGAIN, metadata_path
from megatron_kaiyuan.errors import UserError, system_advice
from megatron_kaiyuan.files import checksum, publish, read_sealed_json, settle, temporary_beside, write_sealed_json
from megatron_kaiyuan.outputs import Output, journal_of, require_name

FORMAT, VERSION = "kaiyuan-corpus", 1
# Megatron's limit: ids of a smaller vocabulary are stored in 16 bits, of any other in 32.
_UINT16_VOCAB_LIMIT = 65500
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


def manifest_path(prefix: Path) -> Path:
    """The manifest of a corpus, its last written file."""
    return beside(prefix, ".manifest.json")


def sealed_paths(prefix: Path) -> list[Path]:
    """The files that a manifest vouches for."""
    return [bin_path(prefix), idx_path(prefix), metadata_path(prefix)]


def _all_paths(prefix: Path) -> tuple[Path, ...]:
    return (*sealed_paths(prefix), manifest_path(prefix))


def tokenizer_path(prefix: Path, recorded: Mapping[str, Any]) -> Path:
    """Where the tokenizer of a corpus is: where the manifest says, or, for one that was moved together with the corpus,
    at the end of its old path, as long as possible, below a folder that the corpus lies in.

    Args:
        recorded: the manifest's `tokenizer`. Whether it is that one is for the caller to compare.
    """
    path = Path(recorded["path"])
    if os.path.exists(path):  # a name that is too long is that of no file
        return path
    names = [part for part in path.parts if part != path.anchor]
    folders = Path(os.path.abspath(prefix)).parents
    moved = (Path(folder, *names[first:]) for first in range(len(names)) for folder in folders)
    return next((place for place in moved if os.path.exists(place)), path)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """How Megatron stores ids below `vocab_size`, which is the largest id + 1."""
    return np.dtype("<u2" if vocab_size < _UINT16_VOCAB_LIMIT else "<i4")


# Messages quote it.
_Name = Annotated[str, Field(max_length=1000)]


class _Checked(BaseModel):
    # Strict: a count that is a string or a boolean is damage. Keys of later writers are none.
    model_config = ConfigDict(strict=True, extra="allow")


class _Tokenizer(_Checked):
    # As long as the system's paths may be.
    path: Annotated[str, Field(max_length=4095)]
    # xxh3:, and 32 digits; other tools may write another kind.
    fingerprint: Annotated[str, Field(max_length=200)]
    vocab_size: Annotated[int, Field(ge=1, le=1 << 31)]
    eod_id: Count


class _File(_Checked):
    bytes: Count
    checksum: Annotated[str, Field(pattern=r"^xxh3:[0-9a-f]{32}$")]


class _Manifest(_Checked):
    format: Literal["kaiyuan-corpus"]
    version: Literal[1]
    sequences: Count
    tokens: Count
    dtype: Literal["uint16", "int32"]
    max_token_id: Annotated[int, Field(ge=-1, lt=1 << 31)]
    tokenizer: _Tokenizer
    scores: list[_Name]
    columns: list[_Name] = []  # the first writers had none
    sources: list[str]
    skipped: dict[str, Count]
    identity: str = ""
    base_identity: str = ""
    made: dict[str, dict[str, Any]] = {}
    files: dict[str, _File]


def read_manifest(prefix: Path) -> dict[str, Any]:
    """The manifest of a corpus, every field of the right type and in agreement with the others.

    Its `files` are exactly the three that lie beside it, so that a manifest cannot name a file elsewhere.

    Raises:
        UserError: it is missing, is none, or a field is wrong.
    """
    path = manifest_path(prefix)
    if not path.exists() and (journal := journal_of(prefix)).is_file():
        raise UserError(
            f"{journal}: a killed process was replacing {prefix}; run its command again, which finishes that"
        )
    try:
        manifest = read_sealed_json(path, "corpus manifest")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise UserError(f"{path}: corpus manifest is not usable JSON ({error}); {AGAIN}") from error
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise UserError(f"{path}: is no corpus manifest of version {VERSION}; {AGAIN}")
    try:
        _check_agreement(prefix, _Manifest.model_validate(manifest))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: a field is missing or wrong ({place}: {first['msg']}); {AGAIN}") from error
    return manifest


def _check_agreement(prefix: Path, manifest: _Manifest) -> None:
    path, tokenizer = manifest_path(prefix), manifest.tokenizer
    expected = {sealed.name for sealed in sealed_paths(prefix)}
    for name in sorted(manifest.files.keys() ^ expected):
        if name in expected:
            raise UserError(f"{path}: a field is missing or wrong (files: lacks {name}); {AGAIN}")
        raise UserError(f"{path}: names the file {name!r}, which is none of this corpus ({prefix.name}.*); {AGAIN}")
    names = [*manifest.scores, *manifest.columns]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a field is missing or wrong (scores, columns: a name stands twice); {AGAIN}")
    if max(manifest.max_token_id, tokenizer.eod_id) >= tokenizer.vocab_size:
        raise UserError(f"{path}: has ids outside the tokenizer's vocabulary of {tokenizer.vocab_size}; {AGAIN}")
    dtype = token_dtype(tokenizer.vocab_size)
    size = manifest.files[bin_path(prefix).name].bytes
    if manifest.dtype != dtype.name or size != manifest.tokens * dtype.itemsize:
        raise UserError(
            f"{path}: {manifest.tokens} tokens of a vocabulary of {tokenizer.vocab_size} are not {size} bytes "
            f"of {manifest.dtype}; {AGAIN}"
        )


class NewCorpus:
    """The temporary files of a corpus that is being written.

    Attributes:
        bin, index, metadata: paths to write to.
        manifest: to be set before the block ends; `files` is its last entry.
    """

    def __init__(self, prefix: Path):
        self.prefix = prefix
        self.bin, self.index, self.metadata = (temporary_beside(path) for path in sealed_paths(prefix))
        self._sealed = temporary_beside(manifest_path(prefix))
        self.manifest: dict[str, Any] | None = None

    @property
    def paths(self) -> list[Path]:
        return [self.bin, self.index, self.metadata]

    def remove(self) -> None:
        for path in [*self.paths, self._sealed]:
            path.unlink(missing_ok=True)

    def put_in_place(self) -> None:
        """Give the files their names; a corpus of which only some have theirs is finished by the next `settle`."""
        if self.manifest is None:
            raise ValueError("a corpus needs its manifest")
        write_sealed_json(self._sealed, self.manifest)
        pairs = dict(zip(self.paths, sealed_paths(self.prefix), strict=True))
        # The index after the tokens, since readers of Megatron's format open it; the manifest, which seals all, last.
        order = [self.bin, self.metadata, self.index]
        publish(
            [*((new, pairs[new]) for new in order), (self._sealed, manifest_path(self.prefix))],
            journal_of(self.prefix),
        )


@contextmanager
def replace_corpus(prefix: Path) -> Iterator[NewCorpus]:
    """Yield temporary files; when the block ends well they become the corpus, the manifest last.

    After an exception nothing of the new corpus is left, and an older one stays as it was. The caller has claimed the
    place, or holds a lock of its own.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    settle(journal_of(prefix))
    new = NewCorpus(prefix)
    try:
        yield new
        with write_errors(prefix):
            new.put_in_place()
    except BaseException:
        if not journal_of(prefix).exists():
            new.remove()
        raise


def corpus_output(prefix: Path) -> Output:
    """The place of a corpus, for `outputs.claim`."""
    require_name(prefix, "--output-prefix")
    what = "a corpus"
    with suppress(UserError, ValueError, RecursionError, OSError):
        if manifest_path(prefix).is_file() and (made := read_manifest(prefix).get("made")):
            names = ", ".join(list(made)[:3]) + (f" and {len(made) - 3} more" if len(made) > 3 else "")
            what = f"a corpus with columns that `kaiyuan-data score` added ({names})"
    return Output(prefix, what, "--output-prefix", "prefix", _all_paths(prefix))


def earlier_corpus(output: Output) -> str | None:
    """Recognises a corpus with its manifest at a prefix, see `outputs.Earlier`."""
    prefix = output.path
    there = [path for path in _all_paths(prefix) if os.path.lexists(path)]
    if not there:
        return None
    try:
        manifest = read_manifest(prefix)
    except UserError:
        raise output.in_the_way(there[0], "belongs to no corpus with a manifest of this program") from None
    # Scores may have been put in by hand. Damage of the other files is mended by making the corpus again.
    metadata = metadata_path(prefix)
    if metadata.is_file() and checksum(metadata) != manifest["files"][metadata.name]["checksum"]:
        raise output.in_the_way(metadata, "was changed after it was written")
    return str(manifest.get("identity", ""))


def require_space(output: Path, needed: int) -> None:
    """Refuse to begin what will not fit.

    Raises:
        UserError: with both numbers.
    """
    with write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise UserError(
            f"{output}: needs {needed / 1e9:.2f} GB, but {free / 1e9:.2f} are free; free some, or go elsewhere"
        )


@contextmanager
def write_errors(prefix: Path) -> Iterator[None]:
    """Turn what the system says while a corpus is written, often without a file name, into one line."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in _NO_SPACE
        otherwise = "free some space, or write elsewhere" if is_full else "check the folder and the disk"
        advice = system_advice(error, otherwise)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"{prefix}: cannot be written ({reason}); {advice}") from error
