"""Joining corpora: the same bytes that one writer would have given for all their documents, in bounded memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import xxhash

from data_tools import _index
from data_tools.corpora.corpus import manifest_of
from data_tools.corpora.corpus_files import (
    NewCorpus,
    corpus_output,
    earlier_corpus,
    manifest_path,
    read_manifest,
    replace_corpus,
    require_space,
    write_errors,
)
from data_tools.corpora.sidecar import SidecarWriter, sidecar_rows, sidecar_schema
from data_tools.corpora.stock import is_stock, merge_stock
from data_tools.corpora.verify import check_sealed_index, check_sizes
from megatron_kaiyuan.data.indexed import bin_path, idx_path
from megatron_kaiyuan.data.metadata import AGAIN, metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.outputs import claim, identity_of
from megatron_kaiyuan.progress import Progress

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class JoinedCorpus:
    """One corpus to join, with its manifest."""

    prefix: Path
    manifest: dict[str, Any]

    def sealed(self, path: Path) -> dict[str, Any]:
        """Bytes and checksum that the manifest gives for a file."""
        return self.manifest["files"][path.name]


def merge_corpora(inputs: Sequence[Path], output: Path, threads: int = 1, force: bool = False) -> str:
    """`kaiyuan-data merge`: as `join_corpora`, into a new corpus or an earlier one of the same inputs.

    Pairs that Megatron's tools wrote are joined to a pair of that kind, see `merge_stock`.

    Args:
        force: a corpus of other inputs may be replaced.

    Raises:
        UserError: as `join_corpora`, or `output` holds something else.
    """
    prefixes = [Path(prefix) for prefix in inputs]
    if stock := [prefix for prefix in prefixes if is_stock(prefix)]:
        _check_places(prefixes, Path(output))
        if len(stock) < len(prefixes):
            other = next(prefix for prefix in prefixes if prefix not in stock)
            raise UserError(
                f"{stock[0]}: is a stock pair, without manifest and metadata, and {other} is not; join stock pairs "
                "with stock pairs, and corpora with corpora"
            )
        return merge_stock(prefixes, Path(output), threads, force)
    parts = _open_parts(prefixes, Path(output))
    identity = identity_of("merge", [part.manifest["seal"] for part in parts])
    with claim(corpus_output(Path(output)), identity, earlier_corpus, force=force):
        return join_corpora(inputs, output, threads, identity)


def join_corpora(inputs: Sequence[Path], output: Path, threads: int = 1, identity: str = "") -> str:
    """Join corpora in the order given into a new one at `output`; return a summary of one line.

    Everything that is read is compared with its manifest on the way. A merge that was killed leaves nothing under a
    final name, or what the next one finishes.

    Args:
        inputs: prefixes of corpora that the same tokenizer made.
        output: prefix, which the caller has claimed; an older corpus there is replaced.
        threads: for the index; they change the speed, never the bytes.
        identity: fingerprint of what the corpus is made from, for its manifest.

    Raises:
        UserError: an input is missing, damaged or of another tokenizer; or the disk is full.
    """
    parts = _open_parts([Path(prefix) for prefix in inputs], Path(output))
    _check_alike(parts)
    for part in parts:
        _check_small_files(part)
    require_space(output, sum(entry["bytes"] for part in parts for entry in part.manifest["files"].values()))
    with replace_corpus(Path(output)) as new:
        digest = _join_files(parts, new, threads)
        content = {**_joined_content(parts), "identity": identity}
        new.manifest = manifest_of(new, content, digest)
    plural = "corpus" if len(parts) == 1 else "corpora"
    counts = f"{content['sequences']:,} sequences, {content['tokens']:,} tokens"
    return f"merge: {len(parts)} {plural} joined, {counts}, in {output}"


def _open_parts(inputs: Sequence[Path], output: Path) -> list[JoinedCorpus]:
    _check_places(inputs, output)
    return [JoinedCorpus(prefix, read_manifest(prefix)) for prefix in inputs]


def _check_places(inputs: Sequence[Path], output: Path) -> None:
    if not inputs:
        raise UserError("merge: name at least one corpus to join")
    seen = set()
    for prefix in inputs:
        place = prefix.resolve()
        if place == output.resolve():
            raise UserError(f"{prefix}: is the output too; give the joined corpus another --output-prefix")
        if place in seen:
            raise UserError(f"{prefix}: is named twice; name each corpus once")
        seen.add(place)


def _check_alike(parts: Sequence[JoinedCorpus]) -> None:
    first = parts[0]
    for part in parts[1:]:
        for field in ("fingerprint", "vocab_size", "eod_id"):
            ours, theirs = part.manifest["tokenizer"][field], first.manifest["tokenizer"][field]
            if ours != theirs:
                raise UserError(
                    f"{manifest_path(part.prefix)}: made by another tokenizer than {first.prefix} "
                    f"({field} {ours}, not {theirs}); only corpora of one tokenizer can be joined"
                )
        for field in ("scores", "columns"):
            ours, theirs = part.manifest.get(field, []), first.manifest.get(field, [])
            if ours != theirs:
                raise UserError(
                    f"{manifest_path(part.prefix)}: has the {field} {', '.join(ours) or 'none'}, but {first.prefix} "
                    f"has {', '.join(theirs) or 'none'}; make both with the same"
                )


def _check_small_files(part: JoinedCorpus) -> None:
    """The sizes of all files, and the checksums of all but the `.bin`, which has its own taken when it is copied."""
    check_sizes(part.prefix, part.manifest["files"])
    for path in (idx_path(part.prefix), metadata_path(part.prefix)):
        _check_seal(path, checksum(path), part)


def _join_files(parts: Sequence[JoinedCorpus], new: NewCorpus, threads: int) -> str:
    """Write the three files, the metadata beside the others because it is bound by the processor, not by the disk."""
    total = sum(part.sealed(bin_path(part.prefix))["bytes"] for part in parts)
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        metadata = pool.submit(_join_metadata, parts, new, stop)
        try:
            with Progress("merge", total, "B") as bar:
                digest = _join_tokens(parts, new, bar)
            _join_indexes(parts, new, threads)
            metadata.result()
        except BaseException:
            stop.set()
            raise
    return digest


def _join_tokens(parts: Sequence[JoinedCorpus], new: NewCorpus, bar: Progress) -> str:
    """Copy the `.bin` files one after another; both sides' checksums come from the one pass."""
    whole = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with ExitStack() as stack:
        with write_errors(new.prefix):
            output = stack.enter_context(open(new.bin, "wb", buffering=0))
        for part in parts:
            path, own = bin_path(part.prefix), xxhash.xxh3_128()
            with _opened(path) as file:
                while size := file.readinto(buffer):
                    chunk = buffer[:size]
                    own.update(chunk)
                    whole.update(chunk)
                    with write_errors(new.prefix):
                        _write_all(output, chunk)
                    bar.advance(size)
            _check_seal(path, f"xxh3:{own.hexdigest()}", part)
    return f"xxh3:{whole.hexdigest()}"


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found, although its manifest is there; {AGAIN}") from error


def _write_all(file: Any, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[file.write(chunk) :]


def _check_seal(path: Path, found: str, part: JoinedCorpus) -> None:
    if found != part.sealed(path)["checksum"]:
        raise UserError(f"{path}: its checksum is not the one in its manifest, so it was changed; {AGAIN}")


def _join_indexes(parts: Sequence[JoinedCorpus], new: NewCorpus, threads: int) -> None:
    for part in parts:
        check_sealed_index(part.prefix, part.manifest, threads)
    pairs = [(os.fsencode(idx_path(part.prefix)), part.sealed(bin_path(part.prefix))["bytes"]) for part in parts]
    try:
        with write_errors(new.prefix):
            _index.merge(os.fsencode(new.index), pairs, threads)
    except ValueError as error:
        raise UserError(f"{new.prefix}: its index cannot be made ({error}); {AGAIN}") from error


def _join_metadata(parts: Sequence[JoinedCorpus], new: NewCorpus, stop: Event) -> None:
    first = parts[0].manifest
    schema = sidecar_schema(first["scores"], first.get("columns", []))
    with write_errors(new.prefix), SidecarWriter(new.metadata, schema) as writer:
        for part in parts:
            path, rows = metadata_path(part.prefix), 0
            for batch in sidecar_rows(path):
                if stop.is_set():
                    return
                if batch.schema != schema:
                    raise UserError(f"{path}: its columns are not those of its manifest; {AGAIN}")
                writer.write(pa.Table.from_batches([batch]))
                rows += len(batch)
            if rows != part.manifest["sequences"]:
                raise UserError(f"{path}: has {rows} rows for {part.manifest['sequences']} sequences; {AGAIN}")


def _joined_content(parts: Sequence[JoinedCorpus]) -> dict[str, Any]:
    manifests = [part.manifest for part in parts]
    skipped: Counter[str] = Counter()
    for manifest in manifests:
        skipped.update(manifest["skipped"])
    first = manifests[0]
    # How columns were made; a quantile within each part is none within the whole.
    made = {
        column: about
        for column, about in first.get("made", {}).items()
        if "quantile" not in about and all(manifest.get("made", {}).get(column) == about for manifest in manifests)
    }
    return {
        **({"made": made} if made else {}),
        "sequences": sum(manifest["sequences"] for manifest in manifests),
        "tokens": sum(manifest["tokens"] for manifest in manifests),
        "dtype": first["dtype"],
        "max_token_id": max(manifest["max_token_id"] for manifest in manifests),
        "tokenizer": first["tokenizer"],
        "scores": first["scores"],
        "columns": first.get("columns", []),
        "sources": list(dict.fromkeys(source for manifest in manifests for source in manifest["sources"])),
        "skipped": skipped,
    }
