"""Checking a corpus against its manifest, its metadata and its vocabulary."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_tools import _index
from data_tools.corpora.corpus import dtype_code
from data_tools.corpora.corpus_files import (
    manifest_path,
    read_manifest,
    sealed_paths,
    token_dtype,
)
from data_tools.corpora.sidecar import check_sidecar, sidecar_schema
from data_tools.corpora.stock import is_stock, verify_stock
from megatron_kaiyuan.data.indexed import bin_path, idx_path, map_lengths
from megatron_kaiyuan.data.metadata import AGAIN, metadata_path, open_metadata
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.progress import has_read

# A multiple of every token's size.
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class VerifiedCorpus:
    """What a corpus holds that was found to be whole.

    Attributes:
        is_stock: it is a pair of Megatron's, without a manifest to compare it with.
    """

    prefix: Path
    sequences: int
    tokens: int
    is_stock: bool = False

    def __len__(self) -> int:
        return self.sequences


def verify(prefix: Path, fast: bool = False, threads: int = 1) -> VerifiedCorpus:
    """Compare a corpus with what its manifest says; of a stock pair, which has none, see `verify_stock`.

    Args:
        fast: look at headers and sizes only, which takes milliseconds for any size. Otherwise every byte is read:
            checksums, each length, pointer and document index, each id, and each row of the metadata.
        threads: for the index.

    Raises:
        UserError: the first thing that is wrong.
    """
    prefix = Path(prefix)
    if is_stock(prefix):
        return VerifiedCorpus(prefix, *verify_stock(prefix, fast, threads), is_stock=True)
    manifest = read_manifest(prefix)
    check_sizes(prefix, manifest["files"])
    check_header(prefix, manifest)
    _check_metadata(prefix, manifest)
    if not fast:
        for path in (idx_path(prefix), metadata_path(prefix)):
            _check_seal(path, checksum(path), manifest)
        check_sealed_index(prefix, manifest, threads)
        _check_tokens(prefix, manifest)
        check_sidecar(metadata_path(prefix), map_lengths(idx_path(prefix)))
    return VerifiedCorpus(prefix, manifest["sequences"], manifest["tokens"])


def check_header(prefix: Path, manifest: dict[str, Any]) -> None:
    """Compare the header of an `.idx`, and the size that it needs, with the file and the manifest.

    Raises:
        UserError: they differ.
    """
    path = idx_path(prefix)
    try:
        code, sequences, _ = _index.header(os.fsencode(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}; {AGAIN}") from error
    if code != dtype_code(token_dtype(manifest["tokenizer"]["vocab_size"])):
        raise UserError(f"{path}: its dtype code {code} is not {manifest['dtype']}, as its manifest says; {AGAIN}")
    _check_count(prefix, "sequences", manifest["sequences"], sequences)


def check_sealed_index(prefix: Path, manifest: dict[str, Any], threads: int = 1) -> None:
    """Check all of an `.idx`, and that it is the one that the manifest counts.

    Raises:
        UserError: the first thing that is wrong.
    """
    path = idx_path(prefix)
    check_header(prefix, manifest)
    size = manifest["files"][bin_path(prefix).name]["bytes"]
    try:
        _, tokens, contiguous = _index.check(os.fsencode(path), size, threads)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {AGAIN}") from error
    _check_count(prefix, "tokens", manifest["tokens"], tokens)
    if not contiguous:
        raise UserError(f"{path}: its sequences do not lie one after another as they were written; {AGAIN}")


def _check_count(prefix: Path, name: str, stated: int, found: int) -> None:
    if stated != found:
        raise UserError(f"{manifest_path(prefix)}: says {stated} {name}, but the index has {found}; {AGAIN}")


def check_sizes(prefix: Path, files: dict[str, Any]) -> None:
    """Compare the sizes of a corpus's files with its manifest.

    Raises:
        UserError: a file is missing, or has another size.
    """
    for path in sealed_paths(prefix):
        if not path.is_file():
            raise UserError(f"{path}: named in the manifest but not found; {AGAIN}")
        found, stated = path.stat().st_size, files[path.name]["bytes"]
        if found != stated:
            raise UserError(f"{path}: has {found} bytes, its manifest says {stated}; {AGAIN}")


def _check_metadata(prefix: Path, manifest: dict[str, Any]) -> None:
    """The footer of the sidecar: its columns and the number of its rows."""
    path, sequences = metadata_path(prefix), manifest["sequences"]
    with open_metadata(path) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
    if rows != sequences:
        raise UserError(f"{path}: has {rows} rows for {sequences} sequences; {AGAIN}")
    if schema != sidecar_schema(manifest["scores"], manifest.get("columns", [])):
        raise UserError(f"{path}: its columns are not those of its manifest; {AGAIN}")


def _check_seal(path: Path, found: str, manifest: dict[str, Any]) -> None:
    if found != manifest["files"][path.name]["checksum"]:
        raise UserError(f"{path}: its checksum is not the one in its manifest, so it was changed; {AGAIN}")


def _check_tokens(prefix: Path, manifest: dict[str, Any]) -> None:
    """The checksum of the `.bin` and the range of its ids, in one pass over the file."""
    path, vocab_size = bin_path(prefix), manifest["tokenizer"]["vocab_size"]
    dtype, digest, largest = token_dtype(vocab_size), xxhash.xxh3_128(), -1
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open(path, "rb") as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            has_read(size)
            tokens: np.ndarray = np.frombuffer(buffer, dtype, size // dtype.itemsize)
            if not tokens.size:
                continue
            largest = max(largest, int(tokens.max()))
            if largest >= vocab_size or int(tokens.min()) < 0:
                raise UserError(f"{path}: holds ids outside the tokenizer's vocabulary of {vocab_size}; {AGAIN}")
    _check_seal(path, f"xxh3:{digest.hexdigest()}", manifest)
    if largest != manifest["max_token_id"]:
        raise UserError(
            f"{manifest_path(prefix)}: says {manifest['max_token_id']} is the largest id, but it is {largest}; {AGAIN}"
        )
