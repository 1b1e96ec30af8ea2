"""`kaiyuan-data score --corpus`: new columns are whole or absent, other commands keep them, the tokens stay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_tools.corpora.corpus_files import manifest_path, read_manifest, sealed_paths
from data_tools.corpora.merge import merge_corpora
from data_tools.corpora.verify import verify
from data_tools.engines.local import LocalEngine
from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.reading.texts import texts
from data_tools.scores import corpora
from data_tools.scores.corpora import CorpusOptions, score_corpora
from data_tools.scores.parse import parse_scorers
from data_tools.tokenizers.decoding import CorpusText
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class Spaces:
    """A scorer of the text for these tests: spaces, missing where there is none."""

    name: str = "spaces"
    version: ClassVar[int] = 1

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return {self.name: pa.float64(), f"{self.name}_first": pa.string()}

    def identity(self) -> dict[str, Any]:
        return {"kind": "spaces", "name": self.name}

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        counts = pc.count_substring(batch.column("text"), " ").cast(pa.float64())
        none = pa.scalar(None, pa.float64())
        first = pc.utf8_slice_codeunits(batch.column("text"), 0, 1).cast(pa.string())
        return {self.name: pc.if_else(pc.equal(counts, 0.0), none, counts), f"{self.name}_first": first}


@pytest.fixture(autouse=True)
def spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(words: Any) -> list[Any]:
        found = [Spaces(*word.split("=")[1:]) for word in words if word.startswith("spaces")]
        return [*found, *parse_scorers([word for word in words if not word.startswith("spaces")])]

    monkeypatch.setattr(corpora, "parse_scorers", parse)


@pytest.fixture(scope="module")
def made(harvested: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("corpus") / "c"
    preprocess(sorted(harvested.glob("*.jsonl")), prefix, Settings(tokenizer_path, score_keys=("score",)))
    return prefix.with_name("c_text_document")


@pytest.fixture
def prefix(made: Path, tmp_path: Path) -> Path:
    for path in made.parent.glob("c_text_document*"):
        if path.is_file():
            shutil.copy2(path, tmp_path / path.name)
    return tmp_path / made.name


def grow(prefix: Path, *scorers: str, quantiles: tuple[str, ...] = (), force: bool = False, **more: Any) -> list[str]:
    options = CorpusOptions(scorers, quantiles, task_tokens=20_000, **more)
    return score_corpora([str(prefix)], options, LocalEngine(1), force)


def contents(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*sealed_paths(prefix), manifest_path(prefix))}


def test_a_column_is_that_of_the_original_texts(prefix: Path, harvested: Path) -> None:
    before = contents(prefix)
    lines = grow(prefix, "spaces")
    originals = [text for text, _ in texts(sorted(harvested.glob("*.jsonl")), "text")]
    table = pq.read_table(metadata_path(prefix))
    assert table["spaces"].to_pylist() == [float(text.count(" ")) or None for text in originals]
    assert table["spaces_first"].to_pylist() == [text[0] for text in originals]
    after = contents(prefix)
    for path in sealed_paths(prefix)[:2]:
        assert before[path.name] == after[path.name]
    old = pq.read_table(pa.BufferReader(before[metadata_path(prefix).name]))
    assert table.select(old.column_names).equals(old)
    assert read_manifest(prefix)["scores"] == ["score", "spaces"] and read_manifest(prefix)["columns"] == [
        "spaces_first"
    ]
    assert verify(prefix).sequences == len(originals)
    missing = sum(" " not in text for text in originals)
    assert lines[0].startswith(f"{prefix}: {len(originals)} sequences, added spaces (2 columns)")
    assert (f"spaces missing: {missing}" in lines[0]) == bool(missing)
    assert len(lines) == 1 and not list(prefix.parent.glob("*.work"))


def test_texts_come_back_byte_for_byte(prefix: Path, harvested: Path) -> None:
    originals = [text for text, _ in texts(sorted(harvested.glob("*.jsonl")), "text")]
    assert CorpusText(prefix).texts(range(len(originals))) == originals


def test_a_tokenizer_that_changes_texts_is_warned_of(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a b c"], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = ["plain text", "an été in Genève", "x"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    preprocess([tmp_path / "in.jsonl"], tmp_path / "c", Settings(tmp_path / "tokenizer.json"))
    lines = grow(tmp_path / "c_text_document", "spaces")
    assert "warning" in lines[1] and "1 texts come back from their tokens with another size" in lines[1]


def test_bytes_do_not_depend_on_the_cut(prefix: Path, made: Path, tmp_path: Path) -> None:
    grow(prefix, "spaces", quantiles=("spaces", "score,by=tokens"))
    other = tmp_path / "other" / made.name
    shutil.copytree(made.parent, other.parent)
    options = CorpusOptions(("spaces",), ("spaces", "score,by=tokens"), task_tokens=9000)
    score_corpora([str(other)], options, LocalEngine(1))
    assert contents(prefix) == contents(other)


def test_quantiles_are_exact_and_missing_scores_have_none(prefix: Path) -> None:
    grow(prefix, "spaces", quantiles=("spaces", "score,by=tokens"))
    table = pq.read_table(metadata_path(prefix)).to_pandas()
    scored = table[table.spaces.notna()].sort_values("spaces_quantile")
    assert list(scored.spaces_quantile) == [(i + 1) / len(scored) for i in range(len(scored))]
    assert np.all(np.diff(scored.spaces) >= 0)
    assert table.spaces_quantile.isna().sum() == table.spaces.isna().sum()
    by_tokens = table.sort_values("score_quantile")
    assert np.all(np.diff(by_tokens.score) >= 0)
    assert list(by_tokens.score_quantile) == list(by_tokens.tokens.cumsum() / table.tokens.sum())


def test_what_is_there_is_not_made_again_and_not_replaced(prefix: Path) -> None:
    grow(prefix, "spaces", quantiles=("spaces",))
    before = contents(prefix)
    assert grow(prefix, "spaces", quantiles=("spaces",)) == [f"{prefix}: has these columns already"]
    assert contents(prefix) == before
    with pytest.raises(UserError, match="has a column 'spaces' already, made in another way"):
        grow(prefix, "column=score,name=spaces,scale=2")
    with pytest.raises(UserError, match="spaces_quantile is of spaces, which changes; add --quantile spaces"):
        grow(prefix, "column=score,name=spaces,scale=2", force=True)
    with pytest.raises(UserError, match="has a column 'score' already"):
        grow(prefix, "column=score,scale=2")
    assert contents(prefix) == before
    grow(prefix, "column=score,name=spaces,scale=2", quantiles=("spaces",), force=True)
    table = pq.read_table(metadata_path(prefix))
    assert table["spaces"].to_pylist() == [2 * value for value in table["score"].to_pylist()]
    assert np.all(np.diff(table["spaces"].to_numpy()[np.argsort(table["spaces_quantile"].to_numpy())]) >= 0)
    verify(prefix)


def test_mistakes_are_one_line_and_change_nothing(prefix: Path, tmp_path: Path) -> None:
    before = contents(prefix)
    with pytest.raises(UserError, match="has no score 'edu'; it has score"):
        grow(prefix, quantiles=("edu",))
    with pytest.raises(UserError, match="nothing to do"):
        grow(prefix)
    with pytest.raises(UserError, match="'tokens' is a column of every corpus"):
        grow(prefix, "column=score,name=tokens")
    with pytest.raises(UserError, match="column 'edu' is not in the input"):
        grow(prefix, "column=edu")
    with pytest.raises(UserError, match="not found; name a corpus"):
        grow(tmp_path / "none", "spaces")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text('{"model": {"vocab": {}}}')
    with pytest.raises(UserError, match="is not the tokenizer that made"):
        grow(prefix, "spaces", tokenizer=tokenizer)
    assert contents(prefix) == before


def test_preprocess_does_not_drop_the_columns_in_silence(harvested: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    arguments = sorted(harvested.glob("*.jsonl")), tmp_path / "c", Settings(tokenizer_path, score_keys=("score",))
    preprocess(*arguments)
    prefix = tmp_path / "c_text_document"
    grow(prefix, "spaces")
    before = contents(prefix)
    with pytest.raises(UserError, match=r"added \(spaces, spaces_first\).*--force"):
        preprocess(*arguments)
    assert contents(prefix) == before
    preprocess(*arguments, force=True)
    assert pq.read_schema(metadata_path(prefix)).names[-1] == "score"


def test_merge_takes_the_columns_along(prefix: Path, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / made.name
    shutil.copytree(made.parent, other.parent)
    for one in (prefix, other):
        grow(one, "spaces", quantiles=("spaces",))
    merge_corpora([prefix, other], tmp_path / "both")
    merge_corpora([prefix, other], tmp_path / "both")  # a second time is no error
    table = pq.read_table(metadata_path(tmp_path / "both"))
    assert table["spaces"].to_pylist() == 2 * pq.read_table(metadata_path(prefix))["spaces"].to_pylist()
    verify(tmp_path / "both")
    # The scores are those of the whole, the quantiles are not.
    assert grow(tmp_path / "both", "spaces") == [f"{tmp_path / 'both'}: has these columns already"]
    with pytest.raises(UserError, match="has a column 'spaces_quantile' already"):
        grow(tmp_path / "both", quantiles=("spaces",))


def start(prefix: Path, rank: int, world: int) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(world)}
    environ |= {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(world)}
    line = ["score", "--corpus", str(prefix), "--scorer", "column=score,name=double,scale=2", "--quantile", "double"]
    return subprocess.Popen([sys.executable, "-m", "data_tools", *line], env=environ)


def copied(made: Path, folder: Path) -> Path:
    shutil.copytree(made.parent, folder)
    return folder / made.name


def test_ranks_write_the_same(made: Path, tmp_path: Path) -> None:
    one, ranks = copied(made, tmp_path / "one"), copied(made, tmp_path / "ranks")
    score_corpora([str(one)], CorpusOptions(("column=score,name=double,scale=2",), ("double",)), LocalEngine(1))
    processes = [start(ranks, rank, 2) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(one) == contents(ranks)
    assert not list(ranks.parent.glob("*.work"))


# Forks before anything starts a thread: a child adds columns and kills itself before its so many-th change of a name,
# from when all stages are done. (test_steps.py kills stages.)
KILLS = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from data_tools.engines.local import LocalEngine
from data_tools.scores import corpora

def watched(change, calls):
    def call(*arguments, **more):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **more)
    return call

made, folder = map(Path, sys.argv[1:])
for step in itertools.count():
    prefix = Path(shutil.copytree(made.parent, folder / str(step))) / made.name
    child = os.fork()
    if not child:
        def add_columns(*arguments, calls=iter(range(step)), add=corpora.add_columns):
            for name in ("rename", "replace", "unlink"):
                setattr(os, name, watched(getattr(os, name), calls))
            add(*arguments)
        corpora.add_columns = add_columns
        options = corpora.CorpusOptions((), ("score",))
        corpora.score_corpora([str(prefix)], options, LocalEngine(1))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        break
"""


def test_a_kill_at_any_point_leaves_the_old_or_the_new(made: Path, tmp_path: Path) -> None:
    old = contents(made)
    whole = copied(made, tmp_path / "whole")
    grow(whole, quantiles=("score",))
    new = contents(whole)
    (tmp_path / "killed").mkdir()
    subprocess.run([sys.executable, "-c", KILLS, str(made), str(tmp_path / "killed")], check=True)
    folders = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.name))
    assert len(folders) > 8
    seen = set()
    for folder in folders:
        prefix = folder / made.name
        if manifest_path(prefix).exists():
            state = contents(prefix)
            assert state in (old, new)
            seen.add("old" if state == old else "new")
            verify(prefix, fast=True)
        else:
            # Between two names: a journal says how to finish it, and so does the message of whoever reads it.
            seen.add("between")
            with pytest.raises(UserError, match="a killed process was replacing"):
                verify(prefix)
        grow(prefix, quantiles=("score",))
        assert contents(prefix) == new
        assert not [*folder.glob("*.work"), *folder.glob("*.tmp")]
    assert seen == {"old", "between", "new"}
