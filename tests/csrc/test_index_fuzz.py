"""Damaged files: never a crash, a hang, or a structurally wrong file that is taken for a right one.

Two checkers are held against each other and against the format in plain Python: the one in C++ that `verify` and
`merge` use, and the one in NumPy that training opens corpora with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_tools import _index
from data_tools.corpora.corpus import CorpusWriter, Documents, manifest_path
from data_tools.corpora.corpus_files import read_manifest, sealed_paths
from data_tools.corpora.verify import verify
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, write_sealed_json
from tests.helpers.files.mutations import mutate
from tests.helpers.references.index import ITEM_SIZES, is_contiguous, is_sound

ROUNDS = [600, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    tokenizer = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": 300, "eod_id": 0}
    lengths = [3, 0, 1, 5, 2]
    with CorpusWriter(tmp_path / "corpus", tokenizer, ["score"], ["in.jsonl"]) as writer:
        names, scores = [""] * 5, {"score": [0.5] * 5}
        writer.add(Documents(np.arange(11), lengths, lengths, names, names, scores))
    return tmp_path / "corpus"


def opens(prefix: Path) -> bool:
    try:
        corpus = IndexedCorpus(prefix)
    except UserError as error:
        assert "\n" not in str(error)
        return False
    for sequence in range(len(corpus)):
        assert len(corpus.tokens(sequence)) == corpus.lengths[sequence]
    return True


def passes(prefix: Path, fast: bool = False) -> bool:
    try:
        verify(prefix, fast)
    except UserError as error:
        assert "\n" not in str(error)
        assert prefix.name in str(error)
        return False
    return True


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_indexes(prefix: Path, rounds: int):
    index, manifest = prefix.with_name("corpus.idx"), manifest_path(prefix)
    whole, sealed = index.read_bytes(), json.loads(manifest.read_text())
    bin_size = sealed["files"]["corpus.bin"]["bytes"]
    accepted = 0
    for seed in range(rounds):
        raw = mutate(whole, seed)
        index.write_bytes(raw)
        sound = is_sound(raw, bin_size)
        try:
            header, _, contiguous = _index.check(os.fsencode(index), bin_size, 1 + seed % 2)
        except ValueError:
            assert not sound, seed
        else:
            assert sound, seed
            assert header[0] in ITEM_SIZES
            assert contiguous == is_contiguous(raw, bin_size), seed
        assert opens(prefix) == sound, seed
        # As if the damage had come before the checksum: now structure alone can tell.
        sealed["files"]["corpus.idx"] = {"bytes": len(raw), "checksum": checksum(index)}
        write_sealed_json(manifest, sealed)
        if passes(prefix):
            # Only document boundaries may be others than they were: neither tokens nor metadata depend on them.
            assert raw[: 34 + 12 * 4] == whole[: 34 + 12 * 4], seed
            assert is_contiguous(raw, bin_size), seed
        accepted += sound
    assert 0 < accepted < rounds / 4


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_manifests(prefix: Path, rounds: int):
    path = manifest_path(prefix)
    whole = path.read_bytes()
    agreed = json.loads(whole)
    passed = 0
    for seed in range(rounds):
        raw = mutate(whole, seed)
        path.write_bytes(raw)
        assert passes(prefix, fast=seed % 2 == 0) == (raw == whole), seed
        # As if the damage had come before the seal: now its fields alone can tell.
        try:
            write_sealed_json(path, {**json.loads(raw)})
        except (ValueError, TypeError, RecursionError):
            continue
        if not passes(prefix, fast=seed % 2 == 0):
            continue
        passed += 1
        found = read_manifest(prefix)
        for field in ("format", "version", "sequences", "tokens", "dtype"):
            assert found[field] == agreed[field], seed
        for name, entry in agreed["files"].items():
            assert found["files"][name]["bytes"] == entry["bytes"], seed
            assert seed % 2 == 0 or found["files"][name]["checksum"] == entry["checksum"], seed
    # What passes has other words: a path, a source, the reason of a skipped row.
    assert 0 < passed < rounds / 2


@pytest.mark.parametrize("rounds", ROUNDS)
def test_any_change_under_the_seal_is_found(prefix: Path, rounds: int):
    for number, path in enumerate(sealed_paths(prefix)):
        whole = path.read_bytes()
        for seed in range(number, rounds, 3):
            raw = mutate(whole, seed)
            path.write_bytes(raw)
            assert passes(prefix) == (raw == whole), seed
            if seed % 2 and raw != whole:
                passes(prefix, fast=True)
        path.write_bytes(whole)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_metadata_under_a_new_seal(prefix: Path, rounds: int):
    """Whatever the Parquet library makes of a damaged file, rows that pass have the lengths of the index."""
    path, manifest = metadata_path(prefix), manifest_path(prefix)
    whole, sealed = path.read_bytes(), json.loads(manifest.read_text())
    for seed in range(rounds):
        path.write_bytes(mutate(whole, seed))
        sealed["files"][path.name] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
        write_sealed_json(manifest, sealed)
        if passes(prefix, fast=seed % 2 == 0) and seed % 2:
            assert pq.read_table(path, columns=["tokens"])["tokens"].to_pylist() == [3, 1, 5, 2], seed
