"""`kaiyuan-data score --corpus`: columns for a corpus that exists, without tokenizing again.

The text comes back by decoding; ranges of sequences are the tasks of a stage; then the sidecar is written with the new
columns and the manifest sealed again. The `.bin` and the `.idx` are only read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.corpora.corpus_files import corpus_output, earlier_corpus, read_manifest, tokenizer_path
from data_tools.corpora.growing import add_columns
from data_tools.corpora.sidecar import sidecar_slice
from data_tools.engines.stage import Engine, Record, Stage
from data_tools.scores.parse import parse_scorers
from data_tools.scores.quantiles import QuantileColumn, RankedRows, ShardRanks, choice_seed, parse_quantile, rank
from data_tools.scores.ranges import COLUMNS, Range, ScoreRange, cut_ranges
from data_tools.scores.scorer import Scorer
from data_tools.steps.datasets import NAMED
from data_tools.steps.folder import Workplace
from megatron_kaiyuan.cluster.waiting import Waiting
from megatron_kaiyuan.data.indexed import idx_path, map_lengths
from megatron_kaiyuan.data.metadata import FIXED, metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.locks import lock
from megatron_kaiyuan.outputs import Output, claim, identity_of, journal_of

_TOKENS = "tokens"
_WAIT_SECONDS = 60


@dataclass(frozen=True)
class CorpusOptions:
    """Which columns are added.

    Attributes:
        scorers: as `parse_scorers` takes them.
        quantiles: as `parse_quantile` takes them.
        seed: of the draws between equal scores.
        tokenizer: where the tokenizer is, if not where the manifests say.
        task_tokens: size of a task; 0 fits it to the corpus.
    """

    scorers: Sequence[str] = ()
    quantiles: Sequence[str] = ()
    seed: int = 1234
    tokenizer: Path | None = None
    task_tokens: int = 0


def score_corpora(words: Sequence[str], options: CorpusOptions, engine: Engine, force: bool = False) -> list[str]:
    """Add columns to corpora, one after another; return what to print, a line each.

    Args:
        words: prefixes, each with `NAME=` before it or not; equal scores are drawn between as for the corpus of that
            name in an order recipe.
        force: a column that was made in another way is replaced.

    Raises:
        UserError: an argument or a corpus is wrong, or a column is there already.
    """
    scorers = parse_scorers(options.scorers)
    quantiles = [parse_quantile(text) for text in options.quantiles]
    if not scorers and not quantiles:
        raise UserError("score --corpus: nothing to do; name --scorer or --quantile")
    about = [(scorer, scorer.identity()) for scorer in scorers]
    lines = []
    for word in words:
        named = None if is_corpus(Path(word)) else NAMED.fullmatch(word)
        prefix, name = (Path(named[2]), named[1]) if named else (Path(word), Path(word).name)
        lines += _Growth(prefix, name, options, engine, force).grow(about, quantiles)
    return lines


def is_corpus(prefix: Path) -> bool:
    """Whether there is an index of that prefix."""
    return idx_path(prefix).is_file()


class _Growth:
    """One corpus and what it gets."""

    def __init__(self, prefix: Path, name: str, options: CorpusOptions, engine: Engine, force: bool):
        self._prefix, self._name, self._options = prefix, name, options
        # Executors work in folders of their own.
        self._absolute = prefix.absolute()
        self._engine, self._force = engine, force

    def grow(self, scorers: Sequence[tuple[Scorer, dict[str, Any]]], quantiles: Sequence[QuantileColumn]) -> list[str]:
        """Do what is not done; a line or two."""
        if not is_corpus(self._prefix):
            raise UserError(f"{idx_path(self._prefix)}: not found; name a corpus without .bin or .idx")
        with self._claimed():
            wanted = self._wanted(scorers, quantiles)
            place = self._place(wanted)
            if not wanted.made:
                if self._engine.is_first and place.folder.parent.exists():
                    place.remove()
                return [f"{self._prefix}: has these columns already"]
            if self._engine.is_first:
                return self._write(wanted, place)
            with lock(place.lock_path, shared=True, seconds=None):
                # What the first rank has done meanwhile is not done again.
                if self._wanted(scorers, quantiles).made == wanted.made:
                    self._write(wanted, place)
            return []

    def _wanted(self, scorers: Sequence[tuple[Scorer, dict[str, Any]]], quantiles: Sequence[QuantileColumn]) -> _Wanted:
        """What is not there yet.

        Raises:
            UserError: a column is there that was made in another way.
        """
        manifest = read_manifest(self._prefix)
        known, earlier = [*manifest["scores"], *manifest.get("columns", [])], manifest.get("made", {})
        wanted = _Wanted(manifest, [], [], {}, {})
        for scorer, identity in scorers:
            if not all(earlier.get(column) == identity and column in known for column in scorer.columns):
                wanted.scorers.append(scorer)
                wanted.made |= dict.fromkeys(scorer.columns, identity)
                wanted.types |= scorer.columns
        for quantile in quantiles:
            source = wanted.made.get(quantile.column, earlier.get(quantile.column))
            made = {"quantile": str(quantile), "seed": self._options.seed, "dataset": self._name, "of": source}
            if quantile.column not in (*wanted.types, *manifest["scores"]):
                scores = ", ".join(manifest["scores"]) or "none"
                raise UserError(f"{self._prefix}: has no score {quantile.column!r}; it has {scores}")
            if earlier.get(quantile.name) != made or quantile.name not in known:
                wanted.quantiles.append(quantile)
                wanted.made[quantile.name] = made
                wanted.types[quantile.name] = pa.float64()
        self._refuse(wanted, known, earlier)
        return wanted

    def _refuse(self, wanted: _Wanted, known: Sequence[str], earlier: dict[str, Any]) -> None:
        if fixed := [column for column in wanted.made if column in FIXED]:
            raise UserError(
                f"{self._prefix}: {fixed[0]!r} is a column of every corpus; name the new one with ,name=..."
            )
        if (there := [column for column in wanted.made if column in known]) and not self._force:
            raise UserError(
                f"{self._prefix}: has a column {there[0]!r} already, made in another way; name the new one with "
                ",name=..., or replace it with --force"
            )
        for column, made in earlier.items():
            # A quantile of what is about to change.
            source = str(made.get("quantile", "")).partition(",")[0]
            if source in wanted.made and column not in wanted.made:
                raise UserError(f"{self._prefix}: {column} is of {source}, which changes; add --quantile {source}")

    def _place(self, wanted: _Wanted) -> Workplace:
        output = corpus_output(self._prefix)
        output = Output(output.path, "a corpus", "--corpus", "prefix", output.files)
        task = [self._options.task_tokens, wanted.manifest["seal"]]
        return Workplace(output, identity_of("score corpus", task, wanted.made))

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Hold the corpus, finished by now if a killed process was about to replace it. Other ranks wait for that."""
        if self._engine.is_first:
            # Any whole corpus will do: which columns may be replaced is looked at next.
            with claim(corpus_output(self._prefix), "", lambda output: earlier_corpus(output) and ""):
                yield
            return
        line = Waiting(f"the first rank to give the files of {self._prefix} their names ({journal_of(self._prefix)})")
        while journal_of(self._prefix).exists() and line.seconds < _WAIT_SECONDS:
            line.look()
            time.sleep(1)
        yield

    def _write(self, wanted: _Wanted, place: Workplace) -> list[str]:
        ranges = cut_ranges(map_lengths(idx_path(self._prefix)), self._options.task_tokens)
        names = [f"{number:06d}" for number in range(len(ranges))]
        gone = tuple(wanted.made)
        tokenizer = (self._options.tokenizer or tokenizer_path(self._prefix, wanted.manifest["tokenizer"])).absolute()
        work = ScoreRange(self._absolute, tokenizer, tuple(wanted.scorers), gone)
        stage = Stage("score", place.folder / "score", work, ranges, names, [one.tokens for one in ranges])
        records: list[Record] = []
        if wanted.scorers:
            work.check()
            records = self._engine.run(stage)
        files = [stage.folder / f"{name}{COLUMNS}" if wanted.scorers else None for name in names]
        ranks = {
            quantile.name: rank(
                self._engine,
                place.folder / f"quantile-{number:03d}",
                _ReadRange(self._absolute, quantile),
                list(zip(ranges, files, strict=True)),
                quantile,
                choice_seed(self._options.seed, self._name),
            )
            for number, quantile in enumerate(wanted.quantiles)
        }
        if not self._engine.is_first:
            return []
        add_columns(self._prefix, wanted.types, _pieces(ranges, files, ranks), wanted.made)
        place.remove()
        return list(self._report(wanted, records))

    def _report(self, wanted: _Wanted, records: Sequence[Record]) -> Iterator[str]:
        missing: Counter[str] = Counter()
        for record in records:
            missing.update(record["missing"])
        scores = [column for column, kind in wanted.types.items() if pa.types.is_floating(kind) and missing[column]]
        gaps = "".join(f"; {column} missing: {missing[column]:,}" for column in scores)
        made = [_counted(scorer) for scorer in wanted.scorers] + [quantile.name for quantile in wanted.quantiles]
        yield f"{self._prefix}: {wanted.manifest['sequences']:,} sequences, added {', '.join(made)}{gaps}"
        if changed := sum(record["changed"] for record in records):
            yield (
                f"warning: {self._prefix}: {changed:,} texts come back from their tokens with another size, for the "
                "tokenizer normalises or lacks characters; they were scored as the model sees them"
            )


@dataclass
class _Wanted:
    manifest: dict[str, Any]
    scorers: list[Scorer]
    quantiles: list[QuantileColumn]
    made: dict[str, Any]
    types: dict[str, pa.DataType]


@dataclass(frozen=True)
class _ReadRange:
    """Gives `rank` the rows of a range: from what was scored now, or from the sidecar."""

    prefix: Path
    quantile: QuantileColumn

    def __call__(self, task: tuple[Range, Path | None]) -> RankedRows:
        range_, path = task
        column = self.quantile.column
        file_has_it = path is not None and column in pq.read_schema(path).names
        sidecar = [_TOKENS, *([] if file_has_it else [column])]
        table = sidecar_slice(metadata_path(self.prefix), range_.first, range_.stop, sidecar)
        scores = (pq.read_table(path, columns=[column]) if file_has_it else table).column(column)
        numbers = scores.cast(pa.float64()).to_numpy()
        tokens = table.column(_TOKENS).to_numpy().astype(np.int64) if self.quantile.by_tokens else None
        return RankedRows(numbers, np.arange(range_.first, range_.stop, dtype=np.uint64), tokens)


def _counted(scorer: Scorer) -> str:
    return scorer.name if len(scorer.columns) == 1 else f"{scorer.name} ({len(scorer.columns)} columns)"


def _pieces(ranges: Sequence[Range], files: Sequence[Path | None], ranks: dict[str, ShardRanks]) -> Iterator[pa.Table]:
    """The new columns, a range at a time."""
    for number, path in enumerate(files):
        columns = {name: found.quantiles(number) for name, found in ranks.items()}
        table = pq.read_table(path) if path else None
        if table is not None:
            columns |= {name: table.column(name) for name in table.column_names}
        yield pa.table(columns)
