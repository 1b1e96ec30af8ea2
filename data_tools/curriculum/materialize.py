"""A phase as a plain Megatron `.bin/.idx` pair, for stock Megatron and other readers of that format.

Sequence i of the pair is document i of the phase. `tokens` copies them, one after another. `index` copies none: where a
phase has one corpus, pointers are permuted over its `.bin`, to which the pair's `.bin` is a link. Such an index reads
right one sequence at a time; a slice of it, `dataset[a:b]`, does not: Megatron reads that as one run of bytes.

Megatron's GPTDataset shuffles documents: read the pair in its own order to keep the curriculum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools import _index
from data_tools.corpora.corpus_files import manifest_path, read_manifest, write_errors
from data_tools.curriculum.recipe import PhaseRecipe, load_order
from megatron_kaiyuan.data.indexed import DTYPE_CODES, bin_path, idx_path
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import publish, read_sealed_json, temporary_beside, write_sealed_json
from megatron_kaiyuan.forms import Form, require_form
from megatron_kaiyuan.outputs import Output, claim, identity_of, journal_of
from megatron_kaiyuan.progress import Progress

How = Literal["tokens", "index"]
HOW: tuple[How, ...] = ("tokens", "index")
_FORMAT = "kaiyuan-materialized"
# Entries handed to C++ at a time: 2 MiB of order.bin, and a progress bar that moves.
_ENTRIES = 1 << 18


def check_recipe(recipe: Path, overrides: Sequence[str], how: str, phase_name: str | None = None) -> list[str]:
    """The names of the phases that will be written as pairs, all of a recipe or one; refused before anything is built.

    Raises:
        UserError: as `check_materialize`, or there is no such way.
    """
    if how not in HOW:
        raise UserError(f"--materialize {how}: write --materialize {' or --materialize '.join(HOW)}")
    order = load_order(recipe, overrides)
    phases = [phase for phase in order.phases if phase_name in (None, phase.name)]
    for phase in phases:
        check_materialize(phase, order.prefixes, "index" if how == "index" else "tokens")
    return [phase.name for phase in phases]


def materialize_phases(
    output: Path, phases: Sequence[str], how: str | None, threads: int, force: bool = False
) -> Iterator[str]:
    """Write phases that lie in `output` as pairs beside them; one line each. See `materialize`."""
    for phase in phases:
        yield materialize(
            output / phase, output_prefix(output, phase), "index" if how == "index" else "tokens", threads, force
        )


def output_prefix(output: Path, phase: str) -> Path:
    """Where the pair of a phase lies: beside its folder, named as Megatron names a corpus."""
    return output / f"{phase}_text_document"


def check_materialize(phase: PhaseRecipe, corpora: Mapping[str, Path], how: How) -> None:
    """Refuse, before hours of building, a phase that cannot be written as one pair.

    Raises:
        UserError: it is packed, its corpora differ in tokenizer or dtype, or `index` is asked of several corpora.
    """
    if phase.pack is not None:
        raise UserError(f"phase {phase.name}: packed phases hold padding and pieces; remove pack or --materialize")
    names = [dataset.corpus for dataset in phase.datasets]
    present = {name: Path(corpora[name]) for name in names if idx_path(Path(corpora[name])).exists()}
    if how == "index" and len(present) > 1:
        raise UserError(
            f"phase {phase.name}: --materialize index points into one .bin, and the phase has {len(present)} corpora; "
            "use --materialize tokens"
        )
    _check_alike(phase.name, present)


def materialize(folder: Path, output: Path, how: How, threads: int = 1, force: bool = False) -> str:
    """Write a finished phase as a pair; memory does not grow with it. Return one line.

    Beside the pair lies `OUTPUT.phase.json`, which records of what phase it is. A run that was killed leaves the older
    pair, or what the next run finishes.

    Args:
        folder: the phase.
        output: prefix of the pair; a new one, or an earlier pair of the same phase.
        threads: they change the speed, never the bytes.
        force: the pair of another phase may be replaced.

    Raises:
        UserError: as `check_materialize`; the phase or a corpus is damaged; something else lies at `output`; the disk
            is full.
    """
    phase = Phase(folder)
    if phase.manifest.get("packing"):
        raise UserError(f"{folder}: packed phases hold padding and pieces; build it without pack")
    prefixes = [corpus.prefix for corpus in phase.corpora]
    _check_alike(phase.name, dict(enumerate(prefixes)))
    if how == "index" and len(prefixes) > 1:
        raise UserError(f"{folder}: --materialize index points into one .bin, and the phase has {len(prefixes)}")
    item_size = phase.corpora[0].dtype.itemsize
    order: NDArray[np.uint64] = np.memmap(folder / "order.bin", "<u8", mode="r")
    identity = identity_of("materialize", phase.manifest["seal"])
    finals = (bin_path(output), idx_path(output), _record_path(output))
    place = Output(output, "a materialized phase", kind="prefix", files=finals)
    needed = 20 * len(order) + (phase.tokens * item_size if how == "tokens" else 0)
    with write_errors(output), claim(place, identity, _earlier, force=force, needed_bytes=needed):
        tokens, index, record = (temporary_beside(path) for path in finals)
        try:
            written = _write(order, prefixes, index, tokens if how == "tokens" else None, threads, str(folder))
            if written != phase.tokens:
                raise UserError(f"{folder}: its documents hold {written} tokens, not {phase.tokens}; build it again")
            if how == "index":
                os.symlink(os.path.relpath(bin_path(prefixes[0]), output.parent.resolve()), tokens)
            write_sealed_json(record, {"format": _FORMAT, "version": 1, "identity": identity})
            publish(list(zip((tokens, index, record), finals, strict=True)), journal_of(output))
        finally:
            if not journal_of(output).exists():
                for path in (tokens, index, record):
                    path.unlink(missing_ok=True)
    what = "pointers" if how == "index" else f"{phase.tokens * item_size:,} bytes of tokens"
    return f"{output}: {len(order):,} sequences, {what}"


def _write(
    order: NDArray[np.uint64], prefixes: Sequence[Path], index: Path, tokens: Path | None, threads: int, name: str
) -> int:
    pairs = [(os.fsencode(idx_path(prefix)), os.fsencode(bin_path(prefix))) for prefix in prefixes]
    try:
        writer = _index.OrderedWriter(os.fsencode(index), os.fsencode(tokens) if tokens else b"", len(order), pairs)
        with Progress("materialize", len(order), "documents") as progress:
            for at in range(0, len(order), _ENTRIES):
                part = np.ascontiguousarray(order[at : at + _ENTRIES], np.uint64)
                writer.add(part, threads)
                progress.advance(len(part))
        writer.finish()
    except ValueError as error:
        raise UserError(f"{name}: {error}; build the phase again") from error
    return writer.tokens


def _check_alike(phase: str, prefixes: Mapping[Any, Path]) -> None:
    """Return one dtype, and one tokenizer as far as manifests say: a stock Megatron corpus has none."""
    dtypes: dict[Any, Path] = {}
    tokenizers: dict[str, Path] = {}
    for prefix in prefixes.values():
        dtypes.setdefault(_dtype_name(prefix), prefix)
        if manifest_path(prefix).is_file():
            tokenizers.setdefault(_tokenizer(prefix), prefix)
    for what, found in (("types of token", dtypes), ("tokenizers", tokenizers)):
        if len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            raise UserError(
                f"phase {phase}: its corpora have different {what}: {first} in {one}, {second} in {other}; "
                "one pair can hold one only"
            )


def _dtype_name(prefix: Path) -> str:
    try:
        code, _, _ = _index.header(os.fsencode(idx_path(prefix)))
    except ValueError as error:
        raise UserError(f"{idx_path(prefix)}: {error}; make the corpus again") from error
    return str(DTYPE_CODES[code])


def _tokenizer(prefix: Path) -> str:
    return str(read_manifest(prefix)["tokenizer"]["fingerprint"])


class _Record(Form):
    identity: str


def _record_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.phase.json")


def _earlier(output: Output) -> str | None:
    there = [path for path in output.files if os.path.lexists(path)]
    if not there:
        return None
    try:
        content = read_sealed_json(_record_path(output.path), "record of a materialized phase")
    except UserError:
        content = {}
    if content.get("format") != _FORMAT:
        raise output.in_the_way(there[0])
    return require_form(_record_path(output.path), content, _Record, "move it away, or name another --output").identity
