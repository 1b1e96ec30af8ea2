"""`kaiyuan-data curriculum`: the order of each phase, built once and written as an artefact that training maps.

The order itself is made in C++ (csrc/curriculum/algorithm1.h), in bounded memory; here the recipe becomes its calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from data_tools._curriculum import Builder
from data_tools.corpora.corpus_files import manifest_path, write_errors
from data_tools.curriculum.artefact import MissingScores, phase_manifest
from data_tools.curriculum.memory import default_memory, rows_memory
from data_tools.curriculum.packing import Packing, pack_phase, packed_profile
from data_tools.curriculum.profile import BUCKETS, DatasetProfile, phase_profile
from data_tools.curriculum.proportions import Bernoulli, Copies, Kept, Tokens, plan_copies
from data_tools.curriculum.recipe import DatasetRecipe, PhaseRecipe, load_order, nearest
from data_tools.curriculum.source import Source, check_dataset
from megatron_kaiyuan.data.indexed import IndexedCorpus, bin_path, idx_path, map_lengths
from megatron_kaiyuan.data.phase import FORMAT, MANIFEST, VERSION
from megatron_kaiyuan.data.tokenizer_identity import only_tokenizer, tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, checksum, read_sealed_json, write_json, write_sealed_json
from megatron_kaiyuan.forms import Recorded, require_form
from megatron_kaiyuan.outputs import Output, claim, identity_of, refuse_unlisted
from megatron_kaiyuan.progress import Progress

PHASE = "a phase"
# A phase whose tokens differ from its budget by more than this is reported.
_TOLD = 0.01


@dataclass(frozen=True)
class BuiltPhase:
    """What was written, for the person who waits.

    Attributes:
        tokens: of the stream, padding of packs included.
        datasets: for each dataset its name, documents and tokens in the phase with every copy, and sequences in its
            corpus.
        notes: optional datasets that are left out, missing scores, and what the recipe should be looked at for.
        packing: how documents were packed, or None.
    """

    folder: Path
    order: str
    documents: int
    tokens: int
    seconds: float
    datasets: list[tuple[str, int, int, int]]
    notes: list[str]
    packing: Packing | None

    def __str__(self) -> str:
        width = max(len(name) for name, *_ in self.datasets)
        head = f"{self.folder} ({self.order}): {self.documents:,} documents, {_brief(self.tokens)} tokens"
        lines = [f"{head}, {self.seconds:.2f} s"]
        if self.packing:
            lines.append(f"  {self.packing}")
        given = sum(tokens for _, _, tokens, _ in self.datasets)
        for name, documents, tokens, sequences in self.datasets:
            share = f"{100 * tokens / given:5.1f} % of the documents' tokens"
            lines.append(f"  {name:<{width}} {share}, {documents:,} documents with copies, {sequences:,} in the corpus")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def build_recipe(
    recipe: Path,
    overrides: Sequence[str],
    output: Path,
    phase_name: str | None,
    threads: int,
    memory: int | None = None,
    force: bool = False,
) -> str:
    """Build every phase of a recipe, or one, into folders of their names in `output`; print each, return a summary.

    Raises:
        UserError: as `load_order` and `build_phase`, the recipe has no phase of that name, or two tokenizers made
            its corpora.
    """
    order = load_order(recipe, overrides)
    phases = [phase for phase in order.phases if phase_name in (None, phase.name)]
    if not phases:
        raise UserError(
            f"{recipe}: no phase {phase_name!r}; {nearest(str(phase_name), [p.name for p in order.phases])}"
        )
    built = []
    for phase in build_phases(order.prefixes, phases, output, threads, memory, force):
        built.append(phase)
        print(phase, flush=True)
    documents, tokens = (sum(getattr(phase, what) for phase in built) for what in ("documents", "tokens"))
    plural = "phase" if len(built) == 1 else "phases"
    return f"curriculum: {len(built)} {plural}, {documents:,} documents, {_brief(tokens)} tokens, in {output}"


def build_phases(
    corpora: Mapping[str, Path],
    phases: Sequence[PhaseRecipe],
    output: Path,
    threads: int = 0,
    memory: int | None = None,
    force: bool = False,
) -> Iterator[BuiltPhase]:
    """Build phases into folders of their names in `output`, one after the other; arguments as of `build_phase`.

    Raises:
        UserError: as `build_phase`, or two tokenizers made the corpora.
    """
    _check_tokenizers(corpora, phases)
    for phase in phases:
        # Of all of them now, not after hours of building those before it.
        for dataset in _present(phase, corpora):
            check_dataset(dataset, corpora[dataset.corpus])
    with ExitStack() as claims:
        # All at once, so that of two recipes built into one folder at the same time one gets every phase, and always
        # in the order of their names, so that neither waits for the other.
        for phase in sorted(phases, key=lambda phase: phase.name):
            claims.enter_context(_claim(phase, corpora, output / phase.name, force))
        for phase in phases:
            yield _build(phase, corpora, output / phase.name, threads or os.cpu_count() or 1, memory)


def build_phase(
    phase: PhaseRecipe,
    corpora: Mapping[str, Path],
    folder: Path,
    threads: int,
    memory: int | None = None,
    force: bool = False,
) -> BuiltPhase:
    """Choose, order and write one phase.

    Args:
        corpora: prefix of each corpus, by the name that the recipe uses.
        folder: a new folder, or an earlier phase of the same recipe and corpora.
        threads: they change the speed, never the result.
        memory: bytes that the build may take, beyond which it works with files beside `folder`; half of what is free by
            default. It changes the speed, never the result.
        force: an earlier phase of another recipe or other corpora may be replaced.

    Raises:
        UserError: a corpus or score is missing or wrong, the recipe cannot be met, or `folder` holds something else.
    """
    with _claim(phase, corpora, folder, force):
        return _build(phase, corpora, folder, threads, memory)


@contextmanager
def _claim(phase: PhaseRecipe, corpora: Mapping[str, Path], folder: Path, force: bool) -> Iterator[None]:
    with ExitStack() as claimed:
        with write_errors(folder):
            identity = _identity(phase, corpora)
            claimed.enter_context(claim(Output(folder, PHASE), identity, earlier_phase, force=force))
        yield


def _build(
    phase: PhaseRecipe, corpora: Mapping[str, Path], folder: Path, threads: int, memory: int | None
) -> BuiltPhase:
    """As `build_phase`, in a place that is claimed."""
    began = time.perf_counter()
    identity, place = _identity(phase, corpora), Output(folder, PHASE)
    with write_errors(folder):
        present = _present(phase, corpora)
        sources = [Source(dataset, Path(corpora[dataset.corpus]), threads) for dataset in present]
        limit = rows_memory(memory or default_memory(), len(sources))
        with atomic_path(place.path, replace_folder=True) as temporary, _recipe_errors(phase):
            temporary.mkdir()
            builder = Builder(os.fspath(temporary), memory=limit, shuffle=phase.order == "shuffle", threads=threads)
            written = _write(phase, sources, builder, folder, temporary)
            write_sealed_json(temporary / MANIFEST, {**written.manifest, "identity": identity})
    notes = [
        f"{d.corpus} left out: optional, and its corpus is empty or does not exist"
        for d in phase.datasets
        if d not in present
    ]
    datasets = [
        (source.name, *count, len(source.corpus)) for source, count in zip(sources, written.counts, strict=True)
    ]
    documents, tokens = written.manifest["documents"], written.manifest["tokens"]
    seconds = time.perf_counter() - began
    return BuiltPhase(folder, phase.order, documents, tokens, seconds, datasets, notes + written.notes, written.packing)


class _Written(NamedTuple):
    """All files of a phase but the manifest; documents and tokens of each source."""

    manifest: dict[str, Any]
    counts: list[tuple[int, int]]
    notes: list[str]
    packing: Packing | None


def _write(phase: PhaseRecipe, sources: Sequence[Source], builder: Builder, folder: Path, temporary: Path) -> _Written:
    """Choose, repeat and order the documents of a phase that will lie in `folder`; write its files to `temporary`."""
    kept, missing = _read(phase, sources, builder)
    plan = plan_copies(phase.model_copy(update={"datasets": [source.recipe for source in sources]}), kept)
    for dataset, copies in enumerate(plan.copies):
        _repeat(builder, dataset, copies)
    counts = [builder.count(dataset) for dataset in range(len(sources))]
    tokens = sum(tokens for _, tokens in counts)
    if not tokens:
        raise UserError(f"phase {phase.name}: its documents hold no token; check its corpora")
    profiles = _interleave(phase, sources, builder, temporary)
    packing = pack_phase(temporary, [s.corpus.lengths for s in sources], phase.pack) if phase.pack else None
    shown = phase_profile(tokens, profiles)
    write_json(temporary / "profile.json", packed_profile(shown, temporary, packing) if packing else shown)
    manifest = phase_manifest(phase, sources, kept, counts, missing, packing, folder, temporary)
    notes = [str(found) for found in missing if found.documents] + plan.warnings + _off_budget(phase, tokens)
    return _Written(manifest, counts, notes, packing)


def _off_budget(phase: PhaseRecipe, tokens: int) -> list[str]:
    """A line where whole documents make another number of tokens than the phase asks for."""
    if phase.tokens == "all" or abs(tokens - phase.tokens) <= _TOLD * phase.tokens:
        return []
    return [
        f"{phase.tokens:,} tokens were asked for, {tokens:,} are here ({tokens / phase.tokens - 1:+.1%}): documents "
        "are whole, and the last one of a dataset crosses the budget; train.train_tokens may end within it"
    ]


def earlier_phase(output: Output) -> str | None:
    """Recognises a phase at the place where one is to be built, see `outputs.Earlier`."""
    folder = output.path
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        manifest = read_sealed_json(folder / MANIFEST, "phase manifest")
    except UserError:
        manifest = {}
    if manifest.get("format") != FORMAT:
        raise output.in_the_way(folder)
    recorded = require_form(folder / MANIFEST, manifest, Recorded, "move it away, or name another folder")
    refuse_unlisted(output, recorded.files)
    return recorded.identity


def _identity(phase: PhaseRecipe, corpora: Mapping[str, Path]) -> str:
    """What the order is made from: the recipe of the phase, and the tokens and scores of each corpus."""
    found = []
    for dataset in _present(phase, corpora):
        prefix = Path(corpora[dataset.corpus])
        # The manifest names the checksum of the scores too; a pair that Megatron made has none.
        seal = checksum(manifest_path(prefix)) if manifest_path(prefix).is_file() else ""
        found.append([dataset.corpus, IndexedCorpus(prefix, check=None).sample_fingerprint(), seal])
    return identity_of("phase", VERSION, phase.model_dump(mode="json"), found)


def _present(phase: PhaseRecipe, corpora: Mapping[str, Path]) -> list[DatasetRecipe]:
    """The datasets whose corpora hold documents; an optional one may be absent or empty.

    Raises:
        UserError: none is there.
    """
    present = [
        dataset for dataset in phase.datasets if not (dataset.optional and _holds_nothing(corpora[dataset.corpus]))
    ]
    if not present:
        raise UserError(f"phase {phase.name}: all its corpora are optional and none holds a document; make one first")
    return present


def _check_tokenizers(corpora: Mapping[str, Path], phases: Sequence[PhaseRecipe]) -> None:
    """Refuse a recipe whose ids mean two things. Corpora that no phase takes are not looked at."""
    taken = dict.fromkeys(dataset.corpus for phase in phases for dataset in phase.datasets)
    named = [(f"corpus {name!r} ({corpora[name]})", tokenizer_of_corpus(corpora[name])) for name in taken]
    only_tokenizer(named, "tokenize all corpora of a recipe with one tokenizer")


def _holds_nothing(prefix: Path) -> bool:
    if not idx_path(prefix).exists():
        return not bin_path(prefix).exists()
    return len(map_lengths(idx_path(prefix))) == 0


@contextmanager
def _recipe_errors(phase: PhaseRecipe) -> Iterator[None]:
    """Turn what the builder says, which knows no names, into one line."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"phase {phase.name}: {error}") from error
    except MemoryError as error:
        raise UserError(f"phase {phase.name}: memory ran out; give less with --memory, as 2G") from error


def _read(phase: PhaseRecipe, sources: Sequence[Source], builder: Builder) -> tuple[list[Kept], list[MissingScores]]:
    """Sort every dataset, and choose from it."""
    kept, missing = [], []
    with Progress(
        f"{phase.name}: read and sort", sum(len(source.corpus) for source in sources), "documents"
    ) as progress:
        for source in sources:
            recipe = source.recipe
            scored = recipe.score is not None
            # Ties at a threshold are decided without the phase's name: a document there stays nested in the larger
            # fractions of other phases. Everything else is drawn for this phase alone.
            builder.begin(
                scored=scored,
                choice_seed=_seed(phase, recipe.corpus),
                order_seed=_seed(phase, recipe.corpus, phase.name),
                expected=len(source.corpus),
            )
            for first, lengths, scores in source.rows():
                builder.add(first, lengths, scores, recipe.missing_scores == "drop")
                progress.advance(len(lengths))
            missing.append(MissingScores(recipe, builder.missing, len(source.corpus)))
            missing[-1].check(phase)
            keep, rows = recipe.kept, builder.rows
            if keep.by_tokens:
                builder.keep_tokens(*keep.tokens(builder.weight))
            elif scored:
                builder.keep(*((0, rows) if keep.how == "random" else keep.ranks(rows)))
            if keep.how == "random":
                builder.keep_random(keep.count(rows))
            kept.append(Kept(builder.rows, builder.tokens))
    return kept, missing


def _repeat(builder: Builder, dataset: int, copies: Copies) -> None:
    match copies.extra:
        case Bernoulli(probability):
            builder.repeat(dataset, copies.whole, probability)
        case Tokens(amount):
            builder.repeat_to(dataset, copies.whole, amount)
        case None:
            builder.repeat(dataset, copies.whole)


def _interleave(phase: PhaseRecipe, sources: Sequence[Source], builder: Builder, folder: Path) -> list[DatasetProfile]:
    """Write order.bin, tokens.bin and checks.bin."""
    rows, tokens = (sum(counts) for counts in zip(*map(builder.count, range(len(sources))), strict=True))
    with Progress(f"{phase.name}: interleave", rows, "documents") as progress:
        given, quality = builder.interleave(
            os.fspath(folder),
            by_tokens=phase.rank_by == "tokens",
            perturb=phase.perturb,
            buckets=min(BUCKETS, tokens),
            progress=progress.reach,
        )
    return [
        DatasetProfile(source.name, source.recipe.score, given[dataset], quality[dataset], builder.groups(dataset))
        for dataset, source in enumerate(sources)
    ]


def _seed(phase: PhaseRecipe, *words: str) -> int:
    """64 bits for one corpus, so that neither phases nor corpora share their random choices."""
    return xxhash.xxh3_64_intdigest("\0".join([str(phase.seed), *words]).encode())


def _brief(count: int) -> str:
    """1,234 as it is, larger numbers as 1.2 M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"
