"""One phase of the token stream: documents of several corpora in a fixed order, mapped, never loaded.

A phase folder (written by `kaiyuan-data curriculum`) holds `order.bin`, u64 little-endian for each document in
stream order: dataset << 48 | sequence; `tokens.bin`, u64: tokens before document k * stride, and the total as last
entry; `profile.json` for reports; and `manifest.json`, written last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json

FORMAT, VERSION = "kaiyuan-phase", 1
SEQUENCE_BITS = 48
SEQUENCE_MASK = np.uint64((1 << SEQUENCE_BITS) - 1)
# Documents between two entries of tokens.bin: the most that a lookup has to walk.
STRIDE = 1024
_FIELDS = {"name", "documents", "tokens", "stride", "corpora"}
_CORPUS_FIELDS = {"name", "path", "fingerprint", "sequences"}
_REMEDY = "build it again with kaiyuan-data curriculum"


class _Block(NamedTuple):
    """The documents between two entries of tokens.bin."""

    first: int
    datasets: NDArray[np.int64]
    sequences: NDArray[np.int64]
    starts: NDArray[np.int64]  # first token of each document in the phase, then the first token of the next block


class Phase:
    """A phase folder, opened read-only. Reading is pure; a fork or a thread may share it.

    Args:
        folder: the phase folder.
        check_corpora: compare the corpora's fingerprints with those the order was built from. It reads each .idx
            once; the ranks of a large job may leave it to one of them. Sizes are compared always.

    Attributes:
        folder, name, manifest: as on disk.
        documents, tokens: totals of the phase.
        corpora: the opened corpora, in the order of the dataset index.

    Raises:
        UserError: a file is missing, damaged or of other corpora; the message names it and says what to do.
    """

    def __init__(self, folder: Path, *, check_corpora: bool = True):
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.name: str = self.manifest["name"]
        self.documents: int = self.manifest["documents"]
        self.tokens: int = self.manifest["tokens"]
        self.stride: int = self.manifest["stride"]
        blocks = -(-self.documents // self.stride)
        self._order = _map(self.folder / "order.bin", self.documents)
        self._cumulative = _map(self.folder / "tokens.bin", blocks + 1)
        if int(self._cumulative[-1]) != self.tokens:
            raise UserError(
                f"{self.folder / 'tokens.bin'}: ends at {self._cumulative[-1]}, not {self.tokens}; {_REMEDY}"
            )
        self.corpora = [_open_corpus(self.folder, entry, check_corpora) for entry in self.manifest["corpora"]]
        self._block: _Block | None = None

    def __repr__(self) -> str:
        return f"Phase({str(self.folder)!r}, {self.documents} documents, {self.tokens} tokens)"

    def locate(self, token_offset: int) -> tuple[int, int]:
        """The document (its number in the phase) that holds a token, and the token's offset in it.

        Raises:
            IndexError: the offset is not in [0, tokens).
        """
        block, row = self._find(token_offset)
        return block.first + row, token_offset - int(block.starts[row])

    def document(self, number: int) -> tuple[int, int]:
        """Dataset index and sequence index of a document of the phase."""
        identifier = int(self._order[number])
        return identifier >> SEQUENCE_BITS, identifier & int(SEQUENCE_MASK)

    def read_into(self, out: NDArray[np.int64], token_offset: int) -> None:
        """Fill `out` with the tokens [token_offset, token_offset + len(out)) of the phase."""
        filled = 0
        while filled < len(out):
            block, row = self._find(token_offset + filled)
            within = token_offset + filled - int(block.starts[row])
            while filled < len(out) and row < len(block.sequences):
                corpus = self.corpora[block.datasets[row]]
                part = corpus.tokens(int(block.sequences[row]), within, within + len(out) - filled)
                out[filled : filled + len(part)] = part
                filled += len(part)
                row, within = row + 1, 0

    def _find(self, token_offset: int) -> tuple[_Block, int]:
        """The block that holds a token and the document's row in it. Empty documents hold none and are passed over."""
        if not 0 <= token_offset < self.tokens:
            raise IndexError(f"token {token_offset} of phase {self.name}, which holds {self.tokens}")
        block = self._block
        if block is None or not block.starts[0] <= token_offset < block.starts[-1]:
            number = int(np.searchsorted(self._cumulative, np.uint64(token_offset), side="right")) - 1
            block = self._block = self._read_block(number)
        return block, int(np.searchsorted(block.starts, token_offset, side="right")) - 1

    def _read_block(self, number: int) -> _Block:
        first = number * self.stride
        identifiers = self._order[first : first + self.stride]
        datasets = (identifiers >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
        sequences = (identifiers & SEQUENCE_MASK).astype(np.int64)
        starts: NDArray[np.int64] = np.empty(len(identifiers) + 1, np.int64)
        starts[0] = 0
        for dataset in np.unique(datasets):
            rows = np.flatnonzero(datasets == dataset)
            self._check_rows(int(dataset), sequences[rows], first)
            starts[rows + 1] = self.corpora[dataset].lengths[sequences[rows]]
        np.cumsum(starts, out=starts)
        expected = int(self._cumulative[number + 1]) - int(self._cumulative[number])
        if starts[-1] != expected:
            raise UserError(
                f"{self.folder / 'order.bin'}: documents {first} to {first + len(identifiers)} hold {starts[-1]} "
                f"tokens, but tokens.bin says {expected}; one of the two is damaged, {_REMEDY}"
            )
        return _Block(first, datasets, sequences, starts + int(self._cumulative[number]))

    def _check_rows(self, dataset: int, sequences: NDArray[np.int64], first: int) -> None:
        known = len(self.corpora[dataset]) if dataset < len(self.corpora) else 0
        if int(sequences.max()) >= known:
            raise UserError(
                f"{self.folder / 'order.bin'}: damaged near document {first}: it names sequence {sequences.max()} of "
                f"dataset {dataset}, which has {known}; {_REMEDY}"
            )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path}: not found, so {folder} is no finished phase; build it with kaiyuan-data curriculum")
    manifest = read_json(path, "phase manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: is no phase manifest; name a folder that kaiyuan-data curriculum wrote")
    if manifest.get("version") != VERSION:
        raise UserError(f"{path}: version {manifest.get('version')}, but only {VERSION} can be read; {_REMEDY}")
    missing = _FIELDS - manifest.keys()
    for entry in manifest.get("corpora", []):
        missing |= _CORPUS_FIELDS - entry.keys()
    if missing:
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; {_REMEDY}")
    return manifest


def _map(path: Path, entries: int) -> NDArray[np.uint64]:
    try:
        size = path.stat().st_size
        if size == 8 * entries:
            return np.memmap(path, "<u8", mode="r").view(np.ndarray)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error
    state = "truncated" if size < 8 * entries else "too long"
    raise UserError(f"{path}: {state}: {size} bytes where the manifest needs {8 * entries}; {_REMEDY}")


def _open_corpus(folder: Path, entry: dict[str, Any], check_fingerprint: bool) -> IndexedCorpus:
    prefix = (folder / entry["path"]).resolve()
    try:
        corpus = IndexedCorpus(prefix)
    except UserError as error:
        raise UserError(f"{error} (corpus {entry['name']!r} of phase {folder})") from error
    same = len(corpus) == entry["sequences"] and (not check_fingerprint or corpus.fingerprint() == entry["fingerprint"])
    if not same:
        raise UserError(
            f"{folder}: corpus {entry['name']!r} ({prefix}) changed since the order was built: {_REMEDY}, or restore it"
        )
    return corpus
