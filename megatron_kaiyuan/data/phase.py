"""One phase of the token stream: entries of several corpora in a fixed order, mapped, never loaded.

A phase folder (written by `kaiyuan-data curriculum`) holds, little-endian:

- `order.bin`, u64 for each entry in stream order: dataset << 48 | sequence. Dataset 65535 is padding.
- `pieces.bin`, in packed phases only, two u32 for each entry: first token in the sequence, and tokens. In other phases
  an entry is a whole sequence.
- `tokens.bin`, u64: tokens before entry k * stride, and the total as last one.
- `checks.bin`, u64: checksum of each block of `stride` entries in order.bin and pieces.bin, see csrc/reader/reader.cpp.
- `profile.json` for reports; and `manifest.json`, written last.

Opening reads headers and sizes, so that it takes the same time for any size. All blocks are checked in a step of its
own, which the ranks of a job share; and each block once more when it is read for the first time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_kaiyuan.data import _reader
from megatron_kaiyuan.data.indexed import IndexedCorpus, map_file, share
from megatron_kaiyuan.data.tokenizer_identity import TokenizerForm
from megatron_kaiyuan.errors import UserError, excerpt, system_advice
from megatron_kaiyuan.files import checksum, read_sealed_json
from megatron_kaiyuan.forms import Count, Files, Form, PathText, require_form
from megatron_kaiyuan.nearby import near_phase
from megatron_kaiyuan.outputs import unlisted

FORMAT, VERSION = "kaiyuan-phase", 2
# csrc/common/phase_format.h says what these are.
SEQUENCE_BITS: int = _reader.SEQUENCE_BITS
PADDING_DATASET: int = _reader.PADDING_DATASET
STRIDE: int = _reader.BLOCK_ENTRIES
SEQUENCE_MASK = np.uint64((1 << SEQUENCE_BITS) - 1)
MANIFEST = "manifest.json"
_FILES = ("order.bin", "tokens.bin", "checks.bin")
_REMEDY = "build it again with kaiyuan-data curriculum"


class _Corpus(Form):
    name: str
    path: PathText
    fingerprint: str
    sample: str
    sequences: Count
    documents: Count
    tokens: Count
    max_token_id: Annotated[int | None, Field(ge=-1, lt=1 << 31)] = None
    missing_scores: Count = 0
    tokenizer: TokenizerForm | None = None


class _Packing(Form):
    seq_length: Annotated[int, Field(ge=1, lt=1 << 31)]
    padding_tokens: Count


class _DatasetOfRecipe(Form):
    corpus: str
    missing_scores: str = ""


class RecipeForm(Form):
    """What readers look for in the recipe that a phase's manifest holds."""

    datasets: list[_DatasetOfRecipe] = []


class _Manifest(Form):
    name: str
    order: str
    documents: Count
    tokens: Count
    stride: Annotated[int, Field(ge=1, lt=1 << 63)]
    packing: _Packing | None = None
    corpora: Annotated[list[_Corpus], Field(min_length=1, max_length=PADDING_DATASET)]
    recipe: RecipeForm = RecipeForm()
    files: Files


class Phase:
    """A phase folder, opened read-only. Reading is pure; a fork or a thread may share it.

    Args:
        folder: the phase folder.
        check: (r, w): also check the r-th of w parts of all that is on disk, see `check`; everything by default.
            None: nothing but headers and sizes. Corpora are compared with the manifest by a sample of their bytes
            in any case.
        opened: corpora that are open already, by resolved prefix; those that this phase opens are added.

    Attributes:
        folder, name, manifest: as on disk.
        documents, tokens: totals of the phase; entries: rows of its order.
        corpora: the opened corpora, in the order of the dataset index.
        reader: what reads the files.

    Raises:
        UserError: a file is missing, damaged or of other corpora; the message names it and says what to do.
    """

    def __init__(
        self,
        folder: Path,
        *,
        check: tuple[int, int] | None = (0, 1),
        opened: dict[Path, IndexedCorpus] | None = None,
    ):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.name: str = self.manifest["name"]
        self.documents: int = self.manifest["documents"]
        self.tokens: int = self.manifest["tokens"]
        self.stride: int = self.manifest["stride"]
        files = self.manifest["files"]
        if extra := unlisted(self.folder, files):
            raise UserError(
                f"{self.folder / extra[0]}: is not listed in the manifest of the phase, so it is not known what the "
                f"order is; move it away, or {_REMEDY}"
            )
        self.entries: int = files["order.bin"]["bytes"] // 8
        blocks = -(-self.entries // self.stride)
        self._order = _map(self.folder / "order.bin", self.entries)
        cumulative = _map(self.folder / "tokens.bin", blocks + 1)
        checks = _map(self.folder / "checks.bin", blocks)
        pieces = _map(self.folder / "pieces.bin", self.entries) if "pieces.bin" in files else None
        if int(cumulative[-1]) != self.tokens:
            raise UserError(f"{self.folder / 'tokens.bin'}: ends at {cumulative[-1]}, not {self.tokens}; {_REMEDY}")
        opened = {} if opened is None else opened
        self.corpora = [_open_corpus(self.folder, entry, opened) for entry in self.manifest["corpora"]]
        readers = [corpus.reader for corpus in self.corpora]
        self.reader = _reader.Phase(self._order, cumulative, checks, pieces, self.stride, readers)
        if check is not None:
            self.check(*check)

    def __repr__(self) -> str:
        return f"Phase({str(self.folder)!r}, {self.documents} documents, {self.tokens} tokens)"

    def check(self, part: int = 0, parts: int = 1, *, lengths: bool = False) -> None:
        """Check one part of the blocks and of the corpora's rows; part 0 also the checksums of the small files.

        Args:
            lengths: also compare the length of each entry's sequence with tokens.bin, which reads the indexes all
                over. Reading a block does so in any case.

        Raises:
            UserError: the first thing that is wrong.
        """
        for corpus in self.corpora:
            corpus.check(part, parts)
        if part == 0:
            self.check_seals("tokens.bin", "checks.bin")
        try:
            self.reader.check(*share(self.reader.blocks, part, parts), lengths)
        except _reader.Damage as damage:
            raise self.explain(damage) from damage

    def identity(self) -> dict[str, Any]:
        """What a run that trains on this phase says about it: name, tokens, and fingerprints of order and corpora."""
        files, corpora = self.manifest["files"], self.manifest["corpora"]
        return {
            "name": self.name,
            "tokens": self.tokens,
            "order": files["order.bin"]["checksum"],
            "pieces": files.get("pieces.bin", {}).get("checksum"),
            "corpora": {entry["name"]: entry["fingerprint"] for entry in corpora},
            "samples": {entry["name"]: entry.get("sample") for entry in corpora},
        }

    def check_seals(self, *names: str) -> None:
        """Compare the checksums of files with the manifest; one that the phase does not have is passed over.

        Raises:
            UserError: the first file that differs.
        """
        for name in names:
            sealed = self.manifest["files"].get(name)
            if sealed and not (self.folder / name).is_file():
                raise UserError(f"{self.folder / name}: not found, and listed in the manifest; {_REMEDY}")
            if sealed and checksum(self.folder / name) != sealed["checksum"]:
                raise UserError(f"{self.folder / name}: its checksum is not the one in the manifest; {_REMEDY}")

    def compare_fingerprints(self) -> None:
        """Compare the whole indexes and the sizes of the corpora with the manifest.

        Raises:
            UserError: the first corpus that is another.
        """
        for corpus, entry in zip(self.corpora, self.manifest["corpora"], strict=True):
            if corpus.fingerprint() != entry["fingerprint"]:
                raise _changed(self.folder, entry, corpus)

    def explain(self, damage: _reader.Damage) -> UserError:
        """What the reader found, with the path of the file."""
        message, file, _, dataset = damage.args
        if dataset < 0:
            return UserError(f"{self.folder / file}: {message}; {_REMEDY}")
        prefix = self.corpora[dataset].prefix
        return UserError(f"{prefix}{file}: {message} (phase {self.folder}); make the corpus and the phase again")

    def locate(self, token_offset: int) -> tuple[int, int]:
        """The entry (its number in the phase) that holds a token, and the token's offset in it.

        Raises:
            IndexError: the offset is not in [0, tokens).
        """
        if not 0 <= token_offset < self.tokens:
            raise IndexError(f"token {token_offset} of phase {self.name}, which holds {self.tokens}")
        try:
            return self.reader.locate(token_offset)
        except _reader.Damage as damage:
            raise self.explain(damage) from damage

    def document(self, number: int) -> tuple[int, int]:
        """Dataset index and sequence index of an entry of the phase."""
        identifier = int(self._order[number])
        return identifier >> SEQUENCE_BITS, identifier & int(SEQUENCE_MASK)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a phase, every field of the right type and in agreement with the others.

    Raises:
        UserError: it is missing, is none, is of another version, or a field is wrong.
    """
    path = folder / MANIFEST
    if not path.is_file():
        near = near_phase(folder) or "; build it with kaiyuan-data curriculum"
        raise UserError(f"{path}: not found, so {folder} is not a finished phase{near}")
    manifest = read_sealed_json(path, "phase manifest")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: is no phase manifest; name a folder that kaiyuan-data curriculum wrote")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: version {excerpt(manifest.get('version'))}, but only {VERSION} can be read; {_REMEDY}"
        )
    _check_agreement(path, require_form(path, manifest, _Manifest, _REMEDY))
    return manifest


def _check_agreement(path: Path, manifest: _Manifest) -> None:
    """Compare counts and sizes that say the same thing twice."""
    packed = manifest.packing is not None
    for name in (*_FILES, *(["pieces.bin"] if packed else [])):
        if name not in manifest.files:
            raise UserError(f"{path}: lacks {name}; {_REMEDY}")
    entries, rest = divmod(manifest.files["order.bin"].bytes, 8)
    padding = manifest.packing.padding_tokens if manifest.packing else 0
    stated = {
        "documents": (manifest.documents, sum(corpus.documents for corpus in manifest.corpora)),
        "tokens": (manifest.tokens, padding + sum(corpus.tokens for corpus in manifest.corpora)),
        "entries of 8 bytes": (0, rest) if packed else (manifest.documents, entries),
    }
    for what, (one, other) in stated.items():
        if one != other:
            raise UserError(f"{path}: says {one} {what} in one place and {other} in another; {_REMEDY}")
    if packed != ("pieces.bin" in manifest.files):
        raise UserError(f"{path}: lists pieces.bin, which only packed phases have; {_REMEDY}")


def _map(path: Path, entries: int) -> NDArray[np.uint64]:
    try:
        size = path.stat().st_size
        if size == 8 * entries:
            return map_file(path).view("<u8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {system_advice(error, _REMEDY)}") from error
    state = "truncated" if size < 8 * entries else "too long"
    raise UserError(f"{path}: {state}: {size} bytes where the manifest needs {8 * entries}; {_REMEDY}")


def _open_corpus(folder: Path, entry: dict[str, Any], opened: dict[Path, IndexedCorpus]) -> IndexedCorpus:
    prefix = (folder / entry["path"]).resolve()
    if not prefix.name:
        raise UserError(f"{folder / MANIFEST}: the path of corpus {entry['name']!r} names no files; {_REMEDY}")
    try:
        corpus = opened.get(prefix) or opened.setdefault(prefix, IndexedCorpus(prefix, check=None))
    except UserError as error:
        raise UserError(f"{error} (corpus {entry['name']!r} of phase {folder})") from error
    same = len(corpus) == entry["sequences"] and entry["fingerprint"].endswith(f"+{corpus.token_bytes.size}")
    if not same or entry["sample"] != corpus.sample_fingerprint():
        raise _changed(folder, entry, corpus)
    return corpus


def _changed(folder: Path, entry: dict[str, Any], corpus: IndexedCorpus) -> UserError:
    return UserError(
        f"{folder}: corpus {entry['name']!r} ({corpus.prefix}) changed since the order was built: {_REMEDY}, "
        "or restore it"
    )
