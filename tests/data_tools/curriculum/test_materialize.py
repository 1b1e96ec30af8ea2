"""A phase as a plain Megatron pair: stock Megatron Core reads the documents of the phase, in its order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.curriculum.build import build_phase
from data_tools.curriculum.materialize import check_materialize, materialize, output_prefix
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.data.indexed import IndexedCorpus, bin_path, idx_path
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_sealed_json
from tests.helpers.files.small_corpora import numbered_corpus, write_corpus
from tests.helpers.processes.command import Command


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, Path]:
    random = np.random.default_rng(3)
    lengths = random.integers(1, 60, 400)
    numbered_corpus(tmp_path / "code", lengths, 1, scores={"score": random.random(400)})
    numbered_corpus(tmp_path / "wiki", random.integers(1, 30, 150), 500)
    return {"code": tmp_path / "code", "wiki": tmp_path / "wiki"}


def recipe(*datasets: dict, **fields) -> PhaseRecipe:
    return PhaseRecipe.model_validate({"name": "p", "order": "curriculum", "datasets": list(datasets), **fields})


CODE, WIKI = {"corpus": "code", "score": "score", "keep": "top 0.7"}, {"corpus": "wiki", "repeat": 2.5}


def documents(folder: Path) -> list[list[int]]:
    phase = Phase(folder)
    entries = np.fromfile(folder / "order.bin", "<u8")
    return [phase.corpora[int(e) >> 48].tokens(int(e) & (1 << 48) - 1).tolist() for e in entries]


@pytest.mark.parametrize(("how", "datasets"), [("tokens", [CODE, WIKI]), ("tokens", [CODE]), ("index", [WIKI])])
def test_stock_megatron_reads_the_phase(
    corpora: dict[str, Path], tmp_path: Path, how: Literal["tokens", "index"], datasets
) -> None:
    folder = tmp_path / "out" / "p"
    build_phase(recipe(*datasets), corpora, folder, 2)
    prefix = output_prefix(tmp_path / "out", "p")
    line = materialize(folder, prefix, how, 2)
    expected = documents(folder)
    assert line.startswith(f"{prefix}: {len(expected):,} sequences, ")
    for mapped in (True, False):
        theirs = IndexedDataset(str(prefix), mmap=mapped)
        assert len(theirs) == len(expected)
        assert [theirs[at].tolist() for at in range(len(theirs))] == expected
        assert theirs.document_indices.tolist() == list(range(len(expected) + 1))
    ours = IndexedCorpus(prefix)
    assert [ours.tokens(at).tolist() for at in range(len(ours))] == expected
    assert bin_path(prefix).is_symlink() == (how == "index")
    if how == "tokens":
        assert bin_path(prefix).stat().st_size == Phase(folder).tokens * 2
        assert [part.tolist() for part in theirs[0:3]] == expected[:3]
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_the_same_bytes_for_any_number_of_threads(corpora: dict[str, Path], tmp_path: Path) -> None:
    build_phase(recipe(CODE, WIKI), corpora, tmp_path / "p", 1)
    files = []
    for threads in (1, 3):
        materialize(tmp_path / "p", tmp_path / f"out{threads}", "tokens", threads)
        files.append([path(tmp_path / f"out{threads}").read_bytes() for path in (bin_path, idx_path)])
    assert files[0] == files[1]


def test_documents_larger_than_a_buffer_and_moved_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [3_000_000, 5, 2_500_000, 7]
    numbered_corpus(tmp_path / "code", lengths, 1)
    build_phase(recipe({"corpus": "code", "repeat": 2}), {"code": tmp_path / "code"}, tmp_path / "p", 1)
    monkeypatch.chdir(tmp_path)
    materialize(Path("p"), Path("far/away"), "index")
    materialize(Path("p"), Path("whole"), "tokens", 3)
    expected = documents(tmp_path / "p")
    for prefix in ("far/away", "whole"):
        theirs = IndexedDataset(prefix)
        assert all(theirs[at].tolist() == expected[at] for at in range(8))


def test_refuses_what_is_no_single_pair(corpora: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "p"
    build_phase(recipe(CODE, WIKI), corpora, folder, 1)
    for check in (
        lambda: materialize(folder, tmp_path / "new", "index"),
        lambda: check_materialize(recipe(CODE, WIKI), corpora, "index"),
    ):
        with pytest.raises(UserError, match=r"--materialize index points into one \.bin, and the phase has 2"):
            check()
    with pytest.raises(UserError, match="packed phases hold padding"):
        check_materialize(recipe(CODE, pack=64), corpora, "tokens")
    with pytest.raises(UserError, match=r"wiki\.bin: is not part of a materialized phase"):
        materialize(folder, corpora["wiki"], "tokens")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize(("vocab", "message"), [(70_000, "different types of token"), (999, "different tokenizers")])
def test_refuses_other_tokenizers_and_dtypes(
    corpora: dict[str, Path], tmp_path: Path, vocab: int, message: str
) -> None:
    write_corpus(tmp_path / "wiki", [[1, 2]] * 9, vocab=vocab)
    if vocab == 999:
        path = tmp_path / "wiki.manifest.json"
        manifest = json.loads(path.read_text().replace('xxh3:0"', 'xxh3:1"'))
        write_sealed_json(path, manifest)
    with pytest.raises(UserError, match=f"{message}: .* in .*code, .* in .*wiki"):
        check_materialize(recipe(CODE, WIKI), corpora, "tokens")
    build_phase(recipe(CODE, WIKI), corpora, tmp_path / "p", 1)
    with pytest.raises(UserError, match=message):
        materialize(tmp_path / "p", tmp_path / "new", "tokens")
    assert not list(tmp_path.glob("new*"))


def test_an_older_pair_is_replaced_and_a_damaged_phase_leaves_none(corpora: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "p"
    build_phase(recipe(WIKI), corpora, folder, 1)
    for how in ("tokens", "index", "tokens"):
        materialize(folder, tmp_path / "new", how)
        assert len(IndexedDataset(str(tmp_path / "new"))) == Phase(folder).documents
    wiki = IndexedCorpus(corpora["wiki"])
    assert wiki.num_tokens * 2 == bin_path(corpora["wiki"]).stat().st_size, "the link's target was written through"
    order = np.fromfile(folder / "order.bin", "<u8")
    order[3] = order[4]
    order[5] |= np.uint64(1 << 40)
    order.tofile(folder / "order.bin")
    with pytest.raises(UserError, match=r"/p.*(names sequence|damaged|changed)"):
        materialize(folder, tmp_path / "new", "tokens")


def test_the_command_writes_pairs_beside_the_phases(command: Command, corpora: dict[str, Path], tmp_path: Path) -> None:
    order = tmp_path / "order.yaml"
    order.write_text(
        f"root: {tmp_path}\ncorpora: {{code: code, wiki: wiki}}\nphases:\n"
        "  - {name: one, order: shuffle, datasets: [{corpus: wiki}]}\n"
        "  - {name: two, order: curriculum, datasets: [{corpus: code, score: score}, {corpus: wiki}]}\n"
    )
    curriculum = ("curriculum", order, "--output", tmp_path / "out")
    done = command(*curriculum, "--materialize", "index")
    assert done.returncode == 2 and done.stderr.startswith("error: phase two: --materialize index points into one .bin")
    assert not (tmp_path / "out").exists(), "it was refused before anything was built"
    done = command(*curriculum, "--materialize", "pointers")
    assert done.returncode == 2 and "pointers" in done.stderr.splitlines()[-1]
    assert command(*curriculum, "--materialize", "index", "--phase", "one").returncode == 0
    assert bin_path(tmp_path / "out/one_text_document").is_symlink()
    done = command(*curriculum, "--materialize")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("curriculum: 2 phases, 700 documents")
    for name, count in (("one", 150), ("two", 550)):
        theirs = IndexedDataset(str(tmp_path / "out" / f"{name}_text_document"))
        assert [theirs[at].tolist() for at in range(count)] == documents(tmp_path / "out" / name)


PEAK = """
import sys
from pathlib import Path
from data_tools.curriculum.materialize import materialize
materialize(Path(sys.argv[1]), Path(sys.argv[2]), "tokens", 2)
status = Path("/proc/self/status").read_text()
print([int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")][0])
"""


def test_memory_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    peaks = []
    tokenizer = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": 1000, "eod_id": 0}
    for count in (2, 60):
        with CorpusWriter(tmp_path / f"c{count}", tokenizer) as writer:
            for _ in range(count):
                tokens = np.arange(1_000_000) % 1000
                writer.add(Documents(tokens, [len(tokens)], [1], ["test"], ["file"]))
        build_phase(recipe({"corpus": "code"}), {"code": tmp_path / f"c{count}"}, tmp_path / f"p{count}", 1)
        command = [sys.executable, "-c", PEAK, str(tmp_path / f"p{count}"), str(tmp_path / f"new{count}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 60_000, f"{peaks} KiB for 2 and 60 M tokens (4 and 120 MB)"
    assert os.path.getsize(tmp_path / "new60.bin") == 120_000_000
