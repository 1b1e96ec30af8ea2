"""`kaiyuan-data curriculum`: the order of each phase, built once and written as an artefact that training maps.

The order itself is made in C++ (csrc/algorithm1.h); here the documents are chosen and the result is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from data_tools import _curriculum
from data_tools.corpus import manifest_path, metadata_path
from data_tools.curriculum.packing import Packing, pack_phase, stretch_profile
from data_tools.curriculum.profile import PhaseProfile
from data_tools.curriculum.recipe import DatasetRecipe, PhaseRecipe, load_order, nearest, parse_keep
from megatron_kaiyuan.data.indexed import IndexedCorpus, bin_path, idx_path
from megatron_kaiyuan.data.phase import FORMAT, SEQUENCE_BITS, SEQUENCE_MASK, STRIDE, VERSION
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, checksum, read_json, write_json

# Documents whose lengths and scores are gathered at a time; a multiple of STRIDE.
_CHUNK = STRIDE << 12


@dataclass(frozen=True)
class Source:
    """One dataset of a phase: its corpus and the rows that the recipe takes.

    Attributes:
        sequences: u64, ascending; scores: float64 of these rows, or None; copies: u32 of these rows, or None for one.
        all_scores: float64 of every sequence of the corpus, or None.
    """

    recipe: DatasetRecipe
    corpus: IndexedCorpus
    sequences: NDArray[np.uint64]
    scores: NDArray[np.float64] | None
    copies: NDArray[np.uint32] | None
    all_scores: NDArray[np.float64] | None

    @property
    def tokens(self) -> int:
        """Tokens that this dataset gives to the phase."""
        lengths = self.corpus.lengths[self.sequences].astype(np.int64)
        return int(lengths.sum() if self.copies is None else (lengths * self.copies).sum())


@dataclass(frozen=True)
class BuiltPhase:
    """What was written, for the person who waits.

    Attributes:
        datasets: for each dataset its name, documents and tokens in the phase, and sequences in its corpus.
        absent: optional datasets that do not exist.
        packing: how documents were packed, or None.
    """

    folder: Path
    order: str
    documents: int
    tokens: int
    seconds: float
    datasets: list[tuple[str, int, int, int]]
    absent: list[str]
    packing: Packing | None

    def __str__(self) -> str:
        width = max(len(name) for name, *_ in self.datasets)
        head = f"{self.folder} ({self.order}): {self.documents:,} documents, {_brief(self.tokens)} tokens"
        lines = [f"{head}, {self.seconds:.2f} s"]
        if self.packing:
            lines.append(f"  {self.packing}")
        for name, documents, tokens, sequences in self.datasets:
            share = 100 * tokens / self.tokens
            lines.append(f"  {name:<{width}} {share:5.1f} % of tokens, {documents:,} documents from {sequences:,}")
        lines += [f"  {name:<{width}} left out: optional, and its corpus does not exist" for name in self.absent]
        return "\n".join(lines)


def build_recipe(recipe: Path, overrides: Sequence[str], output: Path, phase_name: str | None, threads: int) -> str:
    """Build every phase of a recipe, or one, into folders of their names in `output`; print each, return a summary.

    Raises:
        UserError: as `load_order` and `build_phase`, or the recipe has no phase of that name.
    """
    order = load_order(recipe, overrides)
    phases = [phase for phase in order.phases if phase_name in (None, phase.name)]
    if not phases:
        raise UserError(
            f"{recipe}: no phase {phase_name!r}; {nearest(str(phase_name), [p.name for p in order.phases])}"
        )
    built = []
    for phase in phases:
        built.append(build_phase(phase, order.corpora, output / phase.name, threads or os.cpu_count() or 1))
        print(built[-1], flush=True)
    documents, tokens = (sum(getattr(phase, what) for phase in built) for what in ("documents", "tokens"))
    plural = "phase" if len(built) == 1 else "phases"
    return f"curriculum: {len(built)} {plural}, {documents:,} documents, {_brief(tokens)} tokens, in {output}"


def build_phase(phase: PhaseRecipe, corpora: Mapping[str, Path], folder: Path, threads: int) -> BuiltPhase:
    """Choose, order and write one phase; an existing phase in `folder` is replaced as a whole.

    Args:
        corpora: prefix of each corpus, by the name that the recipe uses.
        threads: they change the speed, never the result.

    Raises:
        UserError: a corpus or score is missing or wrong, nothing is left after filtering, or `folder` is no phase.
    """
    began = time.perf_counter()
    _check_target(folder)
    present = [dataset for dataset in phase.datasets if not (dataset.optional and _absent(corpora[dataset.corpus]))]
    if not present:
        raise UserError(f"phase {phase.name}: all its corpora are optional and none exists; make one first")
    sources = [_load(phase, dataset, Path(corpora[dataset.corpus])) for dataset in present]
    order = _order(phase, sources, threads)
    profile = PhaseProfile(len(sources), sum(source.tokens for source in sources))
    if not profile.total:
        raise UserError(f"phase {phase.name}: its {len(order)} documents hold no token; check its corpora")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        order.astype("<u8", copy=False).tofile(temporary / "order.bin")
        _cumulative_tokens(order, sources, profile).astype("<u8", copy=False).tofile(temporary / "tokens.bin")
        packing = pack_phase(temporary, [s.corpus.lengths for s in sources], phase.pack) if phase.pack else None
        shown = profile.as_json([source.recipe.corpus for source in sources])
        write_json(temporary / "profile.json", stretch_profile(shown, packing) if packing else shown)
        write_json(temporary / "manifest.json", _manifest(phase, sources, profile, packing, folder, temporary))
    seconds = time.perf_counter() - began
    names = [source.recipe.corpus for source in sources]
    sizes = [len(source.corpus) for source in sources]
    datasets = list(zip(names, profile.documents.tolist(), profile.tokens.tolist(), sizes, strict=True))
    absent = [dataset.corpus for dataset in phase.datasets if dataset not in present]
    tokens = packing.tokens if packing else profile.total
    return BuiltPhase(folder, phase.order, len(order), tokens, seconds, datasets, absent, packing)


def _absent(prefix: Path) -> bool:
    return not (bin_path(prefix).exists() or idx_path(prefix).exists())


def _check_target(folder: Path) -> None:
    """A folder is replaced as a whole, so it must be one of ours."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or _is_phase(folder))):
        raise UserError(f"{folder}: exists and is no phase; choose another --output or remove it")


def _is_phase(folder: Path) -> bool:
    path = folder / "manifest.json"
    manifest = read_json(path, "phase manifest") if path.is_file() else None
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _load(phase: PhaseRecipe, recipe: DatasetRecipe, prefix: Path) -> Source:
    corpus = IndexedCorpus(prefix)
    scores = None if recipe.score is None else _read_scores(prefix, recipe.score, len(corpus))
    sequences = _select(phase, recipe, scores, len(corpus))
    if not len(sequences):
        raise UserError(
            f"phase {phase.name}: corpus {recipe.corpus!r} ({prefix}) is empty after filtering: "
            f"keep {recipe.keep!r} of {len(corpus)} documents leaves 0; keep more, or take it out"
        )
    copies = None
    if recipe.repeat != 1:
        copies = _curriculum.copies(sequences, recipe.repeat, _seed(phase, "repeat", recipe.corpus, phase.name))
    return Source(recipe, corpus, sequences, None if scores is None else scores[sequences], copies, scores)


def _read_scores(prefix: Path, column: str, sequences: int) -> NDArray[np.float64]:
    path = metadata_path(prefix)
    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                known = [field.name for field in file.schema_arrow if str(field.type) == "double"]
                raise UserError(f"{path}: unknown score column {column!r}; {nearest(column, known)}")
            scores = file.read([column]).column(0).to_numpy()
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found, so the corpus has no score {column!r}; make it with preprocess") from error
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise UserError(f"{path}: cannot be read as Parquet ({error}); make the corpus again") from error
    if not np.issubdtype(scores.dtype, np.number):
        raise UserError(f"{path}: column {column!r} holds no numbers; name a score column")
    if len(scores) != sequences:
        raise UserError(f"{path}: {len(scores)} rows for {sequences} sequences; make the corpus again")
    return scores.astype(np.float64, copy=False)


def _select(
    phase: PhaseRecipe, recipe: DatasetRecipe, scores: NDArray[np.float64] | None, size: int
) -> NDArray[np.uint64]:
    keep = parse_keep(recipe.keep)
    if keep.how == "all":
        return np.arange(size, dtype=np.uint64)
    # The seed of `top` leaves out the phase: a document at the threshold stays nested in the larger fractions of
    # other phases. Random fractions of two phases are independent.
    words = (recipe.corpus,) if keep.how == "top" else (recipe.corpus, phase.name)
    try:
        return _curriculum.select(
            recipe.corpus, scores if keep.how == "top" else None, size, keep.count(size), _seed(phase, "keep", *words)
        )
    except ValueError as error:
        raise UserError(f"phase {phase.name}: {error}; score the corpus again") from error


def _seed(phase: PhaseRecipe, *words: str) -> int:
    """64 bits for one purpose, so that neither phases nor corpora share their random choices."""
    return xxhash.xxh3_64_intdigest("\0".join([str(phase.seed), *words]).encode())


def _order(phase: PhaseRecipe, sources: list[Source], threads: int) -> NDArray[np.uint64]:
    datasets = [(source.recipe.corpus, source.sequences, source.scores, source.copies) for source in sources]
    try:
        return _curriculum.order(
            datasets,
            shuffle=phase.order == "shuffle",
            seed=_seed(phase, "order", phase.name),
            perturb=phase.perturb,
            threads=threads,
        )
    except ValueError as error:
        raise UserError(f"phase {phase.name}: {error}") from error


def _cumulative_tokens(order: NDArray[np.uint64], sources: list[Source], profile: PhaseProfile) -> NDArray[np.int64]:
    """Tokens before every STRIDE-th document, and the total; fills the profile in the same pass."""
    sparse, total = [], 0
    for datasets, lengths, scores in _gathered(order, sources):
        ends = total + np.cumsum(lengths)
        starts = ends - lengths
        sparse.append(starts[::STRIDE])
        profile.add(datasets, starts, lengths, scores)
        total = int(ends[-1])
    return np.concatenate([*sparse, [total]])


def _gathered(
    order: NDArray[np.uint64], sources: list[Source]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Dataset, length and score (NaN: unscored) of each document, a chunk at a time."""
    for at in range(0, len(order), _CHUNK):
        part = order[at : at + _CHUNK]
        datasets = (part >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
        sequences = part & SEQUENCE_MASK
        lengths: NDArray[np.int64] = np.empty(len(part), np.int64)
        scores = np.full(len(part), np.nan)
        for dataset, source in enumerate(sources):
            rows = np.flatnonzero(datasets == dataset)
            lengths[rows] = source.corpus.lengths[sequences[rows]]
            if source.all_scores is not None:
                scores[rows] = source.all_scores[sequences[rows]]
        yield datasets, lengths, scores


def _manifest(
    phase: PhaseRecipe,
    sources: list[Source],
    profile: PhaseProfile,
    packing: Packing | None,
    folder: Path,
    written: Path,
) -> dict[str, Any]:
    names = sorted(path.name for path in written.iterdir())
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": phase.name,
        "order": phase.order,
        "seed": phase.seed,
        "documents": int(profile.documents.sum()),
        "tokens": packing.tokens if packing else profile.total,
        "stride": STRIDE,
        "packing": packing.as_json() if packing else None,
        "corpora": [
            {
                "name": source.recipe.corpus,
                "path": os.path.relpath(source.corpus.prefix.resolve(), folder.resolve()),
                "fingerprint": source.corpus.fingerprint(),
                "sequences": len(source.corpus),
                "documents": int(profile.documents[dataset]),
                "tokens": int(profile.tokens[dataset]),
                "max_token_id": _max_token_id(source.corpus.prefix),
            }
            for dataset, source in enumerate(sources)
        ],
        "recipe": phase.model_dump(mode="json"),
        "files": {
            name: {"bytes": (written / name).stat().st_size, "checksum": checksum(written / name)} for name in names
        },
    }


def _max_token_id(prefix: Path) -> int | None:
    """From the corpus manifest; a stock Megatron corpus has none, and scanning its tokens would take hours."""
    path = manifest_path(prefix)
    return read_json(path, "corpus manifest").get("max_token_id") if path.is_file() else None


def _brief(count: int) -> str:
    """1,234 as it is, larger numbers as 1.2 M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"
