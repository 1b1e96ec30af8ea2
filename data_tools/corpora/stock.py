"""Pairs that Megatron's own tools wrote: `.bin` and `.idx` alone, without the metadata and manifest of this project.

They may be trained on, so they can be verified, as far as a pair allows, and joined: to a pair
again, byte for byte what Megatron's tools make of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools import _index
from data_tools.corpora.corpus_files import manifest_path, require_space, write_errors
from megatron_kaiyuan.data.indexed import DTYPE_CODES, bin_path, idx_path
from megatron_kaiyuan.data.metadata import AGAIN, metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, publish, read_sealed_json, temporary_beside, write_sealed_json
from megatron_kaiyuan.forms import Checksum, FileName, Form, require_form
from megatron_kaiyuan.outputs import Output, claim, identity_of, journal_of, require_name
from megatron_kaiyuan.progress import Progress

_FORMAT = "kaiyuan-merged-pair"
# A multiple of every token's size.
_CHUNK_BYTES = 1 << 22


class _Record(Form):
    identity: str
    files: dict[FileName, Checksum]


class StockPair(NamedTuple):
    """What a pair holds that was found to be sound."""

    sequences: int
    tokens: int


def is_stock(prefix: Path) -> bool:
    """Whether a pair lies there that no manifest, and no metadata, belongs to."""
    ours = metadata_path(prefix), manifest_path(prefix), journal_of(prefix)
    return bin_path(prefix).is_file() and idx_path(prefix).is_file() and not any(map(os.path.lexists, ours))


def verify_stock(prefix: Path, fast: bool = False, threads: int = 1) -> StockPair:
    """Check that every sequence lies inside the `.bin`, and that no id is negative.

    No manifest says what the ids were: a changed one that is an id too cannot be found.

    Args:
        fast: the rows of the index and the sizes only, not the tokens.

    Raises:
        UserError: the first thing that is wrong.
    """
    path, size = idx_path(prefix), bin_path(prefix).stat().st_size
    try:
        code, sequences, _ = _index.header(os.fsencode(path))
        _, tokens, _ = _index.check(os.fsencode(path), size, threads)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {AGAIN}") from error
    if not fast and DTYPE_CODES[code].kind == "i":
        _refuse_negative(bin_path(prefix), DTYPE_CODES[code])
    return StockPair(sequences, tokens)


def merge_stock(prefixes: Sequence[Path], output: Path, threads: int = 1, force: bool = False) -> str:
    """Join pairs into one pair; return a summary of one line.

    Beside it lies `OUTPUT.merge.json`, which records what it was made from.

    Raises:
        UserError: a pair is damaged, two have other types of tokens, or `output` holds something else.
    """
    require_name(output, "--output-prefix")
    found = [verify_stock(prefix, True, threads) for prefix in prefixes]
    sizes = [bin_path(prefix).stat().st_size for prefix in prefixes]
    about = [[checksum(idx_path(prefix)), size] for prefix, size in zip(prefixes, sizes, strict=True)]
    identity = identity_of("merge stock pairs", about)
    finals = bin_path(output), idx_path(output), output.with_name(f"{output.name}.merge.json")
    place = Output(output, "a pair that merge joined", "--output-prefix", "prefix", finals)
    require_space(output, sum(sizes) + sum(idx_path(prefix).stat().st_size for prefix in prefixes))
    with claim(place, identity, _earlier, force=force):
        tokens, index, record = new = [temporary_beside(path) for path in finals]
        try:
            _join(prefixes, sizes, tokens, index, threads, output)
            files = {final.name: checksum(path) for final, path in zip(finals, new[:2], strict=False)}
            write_sealed_json(record, {"format": _FORMAT, "version": 1, "identity": identity, "files": files})
            publish(list(zip(new, finals, strict=True)), journal_of(output))
        finally:
            if not journal_of(output).exists():
                for path in new:
                    path.unlink(missing_ok=True)
    counts = f"{sum(pair.sequences for pair in found):,} sequences, {sum(pair.tokens for pair in found):,} tokens"
    return f"merge: {len(prefixes)} stock pairs joined, {counts}, in {output}; without metadata, as they have none"


def _join(
    prefixes: Sequence[Path], sizes: Sequence[int], tokens: Path, index: Path, threads: int, output: Path
) -> None:
    pairs = [(os.fsencode(idx_path(prefix)), size) for prefix, size in zip(prefixes, sizes, strict=True)]
    bar = Progress("merge", sum(sizes), "B")
    try:
        with write_errors(output), bar, open(tokens, "wb") as joined:
            _index.merge(os.fsencode(index), pairs, threads)
            for prefix, size in zip(prefixes, sizes, strict=True):
                with open(bin_path(prefix), "rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        joined.write(chunk)
                        size -= len(chunk)
                        bar.advance(len(chunk))
                if size:
                    raise UserError(f"{bin_path(prefix)}: was changed while it was read; run the command again")
    except ValueError as error:
        raise UserError(f"{output}: its index cannot be made ({error}); join pairs of one type of tokens") from error


def _refuse_negative(path: Path, dtype: np.dtype) -> None:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            ids = np.frombuffer(chunk, dtype, len(chunk) // dtype.itemsize)
            if ids.size and int(ids.min()) < 0:
                raise UserError(f"{path}: holds negative ids; {AGAIN}")


def _earlier(output: Output) -> str | None:
    there = [path for path in output.files if os.path.lexists(path)]
    if not there:
        return None
    *pair, record = output.files
    try:
        content = read_sealed_json(record, "record of a joined pair")
    except UserError:
        content = {}
    if content.get("format") != _FORMAT:
        raise output.in_the_way(there[0])
    form = require_form(record, content, _Record, "move it away, or name another place")
    for path in pair:
        if path.exists() and checksum(path) != form.files.get(path.name):
            raise output.in_the_way(path, "was changed after it was written")
    return form.identity
