"""Checking a corpus against its manifest, its metadata and its vocabulary; and looking into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.corpus import manifest_path, metadata_path
from data_tools.tokenizer import TextTokenizer
from megatron_kaiyuan.data.indexed import IndexedCorpus, bin_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, read_json

_AGAIN = "make the corpus again, or copy it again from where it came"
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_TOKENS_AT_ONCE = 1 << 24


def read_manifest(prefix: Path) -> dict[str, Any]:
    """The manifest of a corpus.

    Raises:
        UserError: it is missing, or is none.
    """
    path = manifest_path(prefix)
    manifest = read_json(path, "corpus manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != "kaiyuan-corpus" or manifest.get("version") != 1:
        raise UserError(f"{path}: is no corpus manifest of version 1; {_AGAIN}")
    return manifest


def verify(prefix: Path) -> IndexedCorpus:
    """Read every byte of a corpus and compare it with what its manifest says.

    Raises:
        UserError: the first thing that is wrong.
    """
    corpus = IndexedCorpus(prefix)
    manifest = read_manifest(prefix)
    try:
        _check_files(prefix, manifest["files"])
        _check_counts(corpus, manifest)
        _check_ids(corpus, manifest["tokenizer"]["vocab_size"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest_path(prefix)}: a field is missing or wrong ({error!r}); {_AGAIN}") from error
    _check_metadata(corpus)
    return corpus


def inspect_corpus(prefix: Path) -> dict[str, Any]:
    """Counts and length quantiles in tokens; works for a stock Megatron corpus too, which has no manifest."""
    corpus = IndexedCorpus(prefix)
    quantiles = np.quantile(corpus.lengths, _QUANTILES, method="nearest") if len(corpus) else ()
    return {
        "prefix": str(prefix),
        "sequences": len(corpus),
        "documents": len(corpus.document_indices) - 1,
        "tokens": corpus.num_tokens,
        "dtype": corpus.dtype.name,
        "lengths": {f"{share:.0%}": int(length) for share, length in zip(_QUANTILES, quantiles, strict=False)},
        "manifest": read_manifest(prefix) if manifest_path(prefix).exists() else None,
    }


def decode_sample(prefix: Path, sequence: int, most_tokens: int = 200) -> str:
    """The beginning of a sequence as text, or as ids when the tokenizer of the manifest is not to be had.

    Raises:
        UserError: there is no such sequence, or the tokenizer is no longer the one that made the corpus.
    """
    corpus = IndexedCorpus(prefix)
    if not 0 <= sequence < len(corpus):
        raise UserError(f"{prefix}: has no sequence {sequence}; give one of 0 to {len(corpus) - 1}")
    ids = corpus.tokens(sequence, 0, most_tokens).tolist()
    made_by = read_manifest(prefix)["tokenizer"] if manifest_path(prefix).exists() else {}
    path = Path(made_by.get("path", ""))
    if not path.is_file():
        return " ".join(map(str, ids))
    if checksum(path) != made_by["fingerprint"]:
        raise UserError(f"{path}: is not the tokenizer that made {prefix}; put that one there again")
    return TextTokenizer(path).decode(ids)


def _check_files(prefix: Path, files: dict[str, Any]) -> None:
    for name, expected in files.items():
        path = prefix.with_name(name)
        if not path.exists():
            raise UserError(f"{path}: named in the manifest but not found; {_AGAIN}")
        if path.stat().st_size != expected["bytes"]:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, its manifest says {expected['bytes']}; {_AGAIN}")
        if checksum(path) != expected["checksum"]:
            raise UserError(f"{path}: its checksum is not the one in its manifest, so it was changed; {_AGAIN}")


def _check_counts(corpus: IndexedCorpus, manifest: dict[str, Any]) -> None:
    found = {"sequences": len(corpus), "tokens": corpus.num_tokens, "dtype": corpus.dtype.name}
    for name, value in found.items():
        if manifest[name] != value:
            path = manifest_path(corpus.prefix)
            raise UserError(f"{path}: says {manifest[name]} {name}, but the index has {value}; {_AGAIN}")


def _check_ids(corpus: IndexedCorpus, vocab_size: int) -> None:
    path = bin_path(corpus.prefix)
    if not corpus.num_tokens:
        return
    tokens: np.ndarray = np.memmap(path, corpus.dtype, mode="r", shape=(path.stat().st_size // corpus.dtype.itemsize,))
    for at in range(0, len(tokens), _TOKENS_AT_ONCE):
        part = tokens[at : at + _TOKENS_AT_ONCE]
        if int(part.max()) >= vocab_size or int(part.min()) < 0:
            raise UserError(f"{path}: holds ids outside the tokenizer's vocabulary of {vocab_size}; {_AGAIN}")


def _check_metadata(corpus: IndexedCorpus) -> None:
    path = metadata_path(corpus.prefix)
    try:
        lengths = pq.read_table(path, columns=["tokens"])["tokens"].to_numpy()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if len(lengths) != len(corpus):
        raise UserError(f"{path}: has {len(lengths)} rows for {len(corpus)} sequences; {_AGAIN}")
    if not np.array_equal(lengths, corpus.lengths):
        row = int((lengths != corpus.lengths).argmax())
        raise UserError(f"{path}: row {row} says {lengths[row]} tokens, the index {corpus.lengths[row]}; {_AGAIN}")
