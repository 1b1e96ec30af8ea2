"""The corpus writer against Megatron's own builder and reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from data_tools.corpora import sidecar
from data_tools.corpora.corpus import CorpusWriter, Documents, manifest_path
from data_tools.corpora.corpus_files import read_manifest
from data_tools.corpora.verify import verify
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

TOKENIZER = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": 100, "eod_id": 0}
VOCABULARIES = st.sampled_from([2, 65499, 65500, 65501, 200_000])


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[list[list[int]]]]:
    """A vocabulary size, and batches of documents over it; documents may be empty."""
    vocab_size = draw(VOCABULARIES)
    document = st.lists(st.integers(0, vocab_size - 1), max_size=6)
    return vocab_size, draw(st.lists(st.lists(document, max_size=6), max_size=5))


def as_documents(documents: list[list[int]], first: int = 0) -> Documents:
    count = len(documents)
    return Documents(
        tokens=np.array([*chain(*documents)], np.int64),
        lengths=[len(document) for document in documents],
        text_bytes=[10 * len(document) for document in documents],
        domains=["domain"] * count,
        sources=[f"source {first + i}" for i in range(count)],
        scores={"score": [(first + i) / 8 for i in range(count)]},
    )


def write(prefix: Path, vocab_size: int, parts: list[list[list[int]]]) -> Path:
    tokenizer = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": vocab_size, "eod_id": 0}
    with CorpusWriter(prefix, tokenizer, ["score"], ["in.jsonl"]) as writer:
        first = 0
        for part in parts:
            writer.add(as_documents(part, first))
            first += len(part)
    return prefix


def write_with_megatron(prefix: Path, vocab_size: int, documents: list[list[int]]) -> Path:
    """As Megatron's preprocess_data.py does it, where an empty document has an empty list of lengths."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for document in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)] if document else [])
    builder.finalize(f"{prefix}.idx")
    return prefix


@given(batches())
@settings(max_examples=40)  # each writes and flushes six files
def test_bytes_are_those_of_megatron(tmp_path_factory: pytest.TempPathFactory, case) -> None:
    vocab_size, parts = case
    folder = tmp_path_factory.mktemp("corpus")
    documents = [*chain(*parts)]
    ours = write(folder / "ours", vocab_size, parts)
    theirs = write_with_megatron(folder / "theirs", vocab_size, documents)
    for suffix in (".bin", ".idx"):
        assert ours.with_suffix(suffix).read_bytes() == theirs.with_suffix(suffix).read_bytes()
    kept = [document for document in documents if document]
    corpus = IndexedCorpus(ours)
    assert [corpus.tokens(i).tolist() for i in range(len(corpus))] == kept
    rows = pq.read_table(metadata_path(ours)).to_pydict()
    assert rows["tokens"] == [len(document) for document in kept]
    assert rows["source"] == [f"source {i}" for i, document in enumerate(documents) if document]
    assert rows["score"] == [i / 8 for i, document in enumerate(documents) if document]


def test_megatron_reads_it(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [65499], [7] * 1000]
    prefix = write(tmp_path / "corpus", 65500, [documents])
    dataset = IndexedDataset(str(prefix))
    assert [dataset[i].tolist() for i in range(len(dataset))] == [document for document in documents if document]
    assert dataset.document_indices.tolist() == [0, 1, 1, 2, 3]


def test_manifest_seals_the_files(tmp_path: Path) -> None:
    prefix = write(tmp_path / "corpus", 100, [[[1, 99], []], [[5]]])
    manifest = json.loads(manifest_path(prefix).read_text())
    assert manifest["format"] == "kaiyuan-corpus"
    assert (manifest["sequences"], manifest["tokens"], manifest["max_token_id"]) == (2, 3, 99)
    assert manifest["skipped"] == {"empty text": 1}
    assert manifest["sources"] == ["in.jsonl"]
    for name, entry in manifest["files"].items():
        path = tmp_path / name
        assert entry == {"bytes": path.stat().st_size, "checksum": checksum(path)}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*manifest["files"], "corpus.manifest.json"])


def test_batching_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "ROWS_PER_GROUP", 3)
    documents = [[i % 7] * (i % 4) for i in range(20)]
    one = write(tmp_path / "one", 100, [documents])
    many = write(tmp_path / "many", 100, [documents[:1], [], documents[1:12], documents[12:]])
    for suffix in (".bin", ".idx", ".meta.parquet"):
        assert one.with_name(f"one{suffix}").read_bytes() == many.with_name(f"many{suffix}").read_bytes()


def test_a_failure_leaves_an_older_corpus_as_it_was(tmp_path: Path) -> None:
    prefix = write(tmp_path / "corpus", 100, [[[1, 2]]])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError):
        fail_half_way(prefix)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def fail_half_way(prefix: Path) -> None:
    tokenizer = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": 100, "eod_id": 0}
    with CorpusWriter(prefix, tokenizer, ["score"]) as writer:
        writer.add(as_documents([[3, 4]]))
        raise RuntimeError("stop")


@pytest.mark.parametrize("wrong", [-1, 100, 70_000])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(UserError, match=f"token id {wrong} is outside the vocabulary of 100"):
        write(tmp_path / "corpus", 100, [[[1, wrong]]])
    assert list(tmp_path.iterdir()) == []


def test_lengths_must_add_up(tmp_path: Path) -> None:
    documents = as_documents([[1, 2]])
    documents.lengths = [3]
    tokenizer = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": 100, "eod_id": 0}
    with pytest.raises(ValueError, match="add up"), CorpusWriter(tmp_path / "corpus", tokenizer, ["score"]) as writer:
        writer.add(documents)


def test_arrays_are_as_good_as_lists_and_further_columns_are_kept(tmp_path: Path) -> None:
    lists = as_documents([[1, 2], [], [3]])
    lists.columns = {"url": ["a", "b", None]}
    arrays = replace(
        lists,
        tokens=lists.tokens.astype(np.uint16),
        lengths=np.array(lists.lengths, np.int32),
        text_bytes=np.array(lists.text_bytes, np.int64),
        scores={"score": np.array(lists.scores["score"])},
    )
    for name, documents in (("lists", lists), ("arrays", arrays)):
        with CorpusWriter(tmp_path / name, TOKENIZER, ["score"], columns=["url"]) as writer:
            writer.add(documents)
    for suffix in (".bin", ".idx", ".meta.parquet"):
        assert (tmp_path / f"lists{suffix}").read_bytes() == (tmp_path / f"arrays{suffix}").read_bytes()
    assert pq.read_table(metadata_path(tmp_path / "lists"))["url"].to_pylist() == ["a", None]
    assert read_manifest(tmp_path / "lists")["columns"] == ["url"]


@pytest.mark.parametrize(("scores", "columns"), [(["tokens"], []), (["a", "a"], []), (["a"], ["a"]), ([], ["source"])])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, scores, columns) -> None:
    with pytest.raises(UserError, match="there are two of that name"):
        CorpusWriter(tmp_path / "corpus", TOKENIZER, scores, columns=columns)


@pytest.mark.parametrize("size", [2**31, -1])
def test_a_size_beyond_32_bits_is_refused_not_wrapped(tmp_path: Path, size: int) -> None:
    documents = as_documents([[1]])
    documents.text_bytes = np.array([size], np.int64)
    with (
        pytest.raises(UserError, match="does not fit a corpus"),
        CorpusWriter(tmp_path / "corpus", TOKENIZER, ["score"]) as writer,
    ):
        writer.add(documents)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from data_tools.corpora.corpus import CorpusWriter, Documents
from megatron_kaiyuan.errors import UserError
tokenizer = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": 100, "eod_id": 0}
limit, width = int(sys.argv[2]), int(sys.argv[3])
sys.dont_write_bytecode = True  # the limit would cut it off
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with CorpusWriter(Path(sys.argv[1]), tokenizer) as writer:
        for _ in range(3):
            names = [str(hash((i, width))) for i in range(9_000)]
            writer.add(Documents(np.ones(9_000 * width, np.int64), [width] * 9_000, [1] * 9_000, names, names))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "width"),
    [(100_000, 50), (60_000, 1), (500_000, 1), (1000, 1)],
    ids=["tokens", "index", "metadata", "all"],
)
def test_a_full_disk_is_told_and_leaves_the_older_corpus(tmp_path: Path, limit: int, width: int) -> None:
    write(tmp_path / "corpus", 100, [[[1, 2]]])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "corpus"), str(limit), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot be written (File too large); free some space" in done.stdout, done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_whoever_is_killed_between_two_renames_leaves_no_pair_that_opens(tmp_path: Path) -> None:
    """Killed before each removal and rename in turn: the old corpus, none that opens, or the new one."""
    states = []
    for stop in range(30):
        folder = tmp_path / str(stop)
        prefix = write(folder / "corpus", 100, [[[1, 2]]])
        killed = rewrite_and_be_killed(prefix, stop)
        try:
            states.append(IndexedCorpus(prefix).tokens(0).tolist())
        except UserError as error:
            assert "not found" in str(error)
            states.append(None)
        if manifest_path(prefix).exists():
            assert verify(prefix).sequences == 1
        if not killed:
            break
    assert not killed
    changes = [state for state, before in zip(states, [0, *states], strict=False) if state != before]
    assert changes == [[1, 2], None, [5, 6, 7]]


def rewrite_and_be_killed(prefix: Path, stop: int) -> bool:
    """Write another corpus over one in a child, which dies before its change of names with number `stop`."""
    child = os.fork()
    if child == 0:
        changes = count()

        def die(event: str, _: object) -> None:
            if event in ("os.rename", "os.remove") and next(changes) == stop:
                os._exit(9)

        try:
            sys.addaudithook(die)
            write(prefix, 100, [[[5, 6, 7]]])
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9
