"""Corpora: the manifest, the index and the metadata of one, and the index of a pair of Megatron's own tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, write_sealed_json
from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate
from tests.helpers.files.phase_files import write_pair
from tests.helpers.files.small_corpora import write_corpus

_DOCUMENTS = [[5, 6, 7], [8], [9, 10], [11] * 5]


def _corpus(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in ("other", "web"):
            write_corpus(folder / "made" / name, _DOCUMENTS, {"score": [0.1, 0.9, float("nan"), 0.3]})
            _grow(folder / "made" / name)
        return folder / "made" / f"web{suffix}"

    return make


def _stock(folder: Path) -> Path:
    (folder / "made").mkdir()
    write_pair(folder / "made" / "other", _DOCUMENTS)
    write_pair(folder / "made" / "web", _DOCUMENTS)
    return folder / "made" / "web.idx"


def _prefix(path: Path) -> Path:
    return path.with_name("web")


def _grow(prefix: Path) -> None:
    from data_tools.engines.local import LocalEngine
    from data_tools.scores.corpora import CorpusOptions, score_corpora

    score_corpora([str(prefix)], CorpusOptions(quantiles=["score"]), LocalEngine(1))


def _grow_copy(path: Path) -> Any:
    """`score --corpus`, which writes: a copy."""
    copy = path.parent.with_name("copy") / path.parent.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(path.parent, copy)
    from data_tools.engines.local import LocalEngine
    from data_tools.scores.corpora import CorpusOptions, score_corpora

    options = CorpusOptions(quantiles=["score,by=tokens"])
    score_corpora([str(copy / "web")], options, LocalEngine(1), force=True)


def _merge(path: Path) -> Any:
    from data_tools.corpora.merge import merge_corpora

    output = path.parent.with_name("merged")
    shutil.rmtree(output, ignore_errors=True)
    merge_corpora([path.with_name("other"), _prefix(path)], output / "both")


def _verify(path: Path) -> Any:
    from data_tools.corpora.verify import verify

    verify(_prefix(path), fast=path.stat().st_size % 2 == 0)


def _inspect(path: Path) -> Any:
    from data_tools.corpora.inspect import describe_corpus, inspect_corpus

    found = inspect_corpus(_prefix(path))
    json.dumps(found)
    list(describe_corpus(found))


def _rows(path: Path) -> Any:
    """What an order is built from."""
    from data_tools.curriculum.recipe import DatasetRecipe
    from data_tools.curriculum.source import Source, check_dataset

    recipe = DatasetRecipe(corpus="web", score="score")
    check_dataset(recipe, _prefix(path))
    source = Source(recipe, _prefix(path), 1)
    for _ in source.rows():
        pass
    source.max_token_id()


def _pair_rows(path: Path) -> Any:
    from data_tools.curriculum.recipe import DatasetRecipe
    from data_tools.curriculum.source import Source

    for _ in Source(DatasetRecipe(corpus="web"), _prefix(path), 1).rows():
        pass


def _start(path: Path) -> Any:
    """What `quickstart` and `init` look at."""
    from megatron_kaiyuan.starter.corpora import _open, vocabulary

    vocabulary([_open("web", _prefix(path), "score")], [])


def _held_out(path: Path) -> Any:
    from megatron_kaiyuan.data.indexed import IndexedCorpus
    from megatron_kaiyuan.evaluate.text_bytes import text_bytes

    text_bytes(IndexedCorpus(_prefix(path)))


def _audit(path: Path) -> Any:
    from data_tools.scores.audit_source import CorpusSource, read_table

    try:
        read_table([CorpusSource("web", _prefix(path))], {"score": "--score"}, 3, 1)
    except UserError as error:  # it names the option, as several corpora may be given
        raise UserError(f"{path}: {error}") from error


def _seal(path: Path) -> None:
    """Let the manifest fit a changed file."""
    manifest = path.with_name("web.manifest.json")
    content = json.loads(manifest.read_bytes())
    content["files"][path.name] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    write_sealed_json(manifest, content)


def _merged_pair(folder: Path) -> Path:
    from data_tools.corpora.stock import merge_stock

    _stock(folder)
    merge_stock([folder / "made" / "web", folder / "made" / "other"], folder / "made" / "both")
    return folder / "made" / "both.merge.json"


def _earlier_pair(path: Path) -> Any:
    from data_tools.corpora.stock import _earlier
    from megatron_kaiyuan.outputs import Output

    files = tuple(path.with_name(f"both{suffix}") for suffix in (".bin", ".idx", ".merge.json"))
    _earlier(Output(path.with_name("both"), "a pair", kind="prefix", files=files))


_WHOLE = (_verify, _inspect, _rows, _start, _held_out, _audit, _grow_copy, _merge)
TARGETS = (
    Target("corpus-manifest", _corpus(".manifest.json"), json_damage.sealed, _WHOLE),
    Target("corpus-index", _corpus(".idx"), mutate, _WHOLE, _seal),
    Target("corpus-metadata", _corpus(".meta.parquet"), mutate, _WHOLE, _seal),
    Target("corpus-stock-index", _stock, mutate, (_verify, _inspect, _pair_rows, _merge)),
    Target("corpus-stock-record", _merged_pair, json_damage.sealed, (_earlier_pair,)),
)
