"""Opening a phase: what is checked, what each damage says, and where a token lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.data.phase import STRIDE, Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_sealed_json
from tests.helpers.files.small_corpora import numbered_corpus

RECIPE = PhaseRecipe.model_validate(
    {"name": "phase", "order": "shuffle", "datasets": [{"corpus": "code"}, {"corpus": "wiki", "repeat": 1.5}]}
)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with two corpora and a phase of more than two strides."""
    root = tmp_path_factory.mktemp("built")
    generator = np.random.default_rng(1)
    prefixes = {
        name: numbered_corpus(root / "corpora" / name, generator.integers(1, 9, size).tolist(), first)
        for name, size, first in (("code", 1500, 0), ("wiki", 600, 500))
    }
    build_phase(RECIPE, prefixes, root / "phases/phase", threads=1)
    return root


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """A copy that a test may damage; relative corpus paths still hold."""
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy/phases/phase"


def lengths_in_order(phase: Phase) -> np.ndarray:
    documents = [phase.document(number) for number in range(phase.documents)]
    return np.array([phase.corpora[dataset].lengths[sequence] for dataset, sequence in documents], np.int64)


def test_totals_and_every_location(built):
    phase = Phase(built / "phases/phase")
    lengths = lengths_in_order(phase)
    assert phase.name == "phase"
    assert phase.documents == len(lengths) > 2 * STRIDE
    assert phase.tokens == lengths.sum()
    assert [len(corpus) for corpus in phase.corpora] == [1500, 600]
    expected = [(number, offset) for number, length in enumerate(lengths) for offset in range(length)]
    assert [phase.locate(offset) for offset in range(phase.tokens)] == expected
    for offset in np.random.default_rng(2).integers(0, phase.tokens, 200).tolist():
        assert phase.locate(offset) == expected[offset]
    for outside in (-1, phase.tokens):
        with pytest.raises(IndexError):
            phase.locate(outside)


def test_a_phase_moves_with_its_corpora(copy):
    assert Phase(copy).tokens > 0


def truncate(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    write_sealed_json(path, {**json.loads(path.read_text()), **changes})


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(UserError) as error:
        Phase(folder, **settings)
    return str(error.value)


def test_a_file_that_the_manifest_does_not_list(copy):
    extra = copy / "order.bin.copy"
    extra.write_bytes(b"")
    with pytest.raises(UserError, match=r"order\.bin\.copy: is not listed in the manifest of the phase"):
        Phase(copy)
    extra.rename(copy / ".nfs0000000000000001")  # what a network file system keeps for an open file
    Phase(copy)


def test_truncated_or_missing_files(copy):
    truncate(copy / "order.bin", 8)
    message = refusal(copy)
    assert f"{copy / 'order.bin'}: truncated: " in message
    assert "build it again with kaiyuan-data curriculum" in message
    (copy / "order.bin").unlink()
    assert f"{copy / 'order.bin'}: cannot be read" in refusal(copy)


@pytest.mark.parametrize("cut", [8, 3])
def test_truncated_cumulative_tokens(copy, cut):
    truncate(copy / "tokens.bin", cut)
    assert "tokens.bin: truncated" in refusal(copy)


def test_longer_than_the_manifest(copy):
    with open(copy / "order.bin", "ab") as file:
        file.write(b"\0" * 8)
    assert "order.bin: too long" in refusal(copy)


def test_manifest(copy):
    edit_manifest(copy, tokens=5)
    assert "manifest.json: says 5 tokens in one place and" in refusal(copy)
    edit_manifest(copy, version=3)
    assert "version 3, but only" in refusal(copy)
    edit_manifest(copy, format="kaiyuan-corpus")
    assert "is no phase manifest" in refusal(copy)
    write_sealed_json(copy / "manifest.json", {"format": "kaiyuan-phase", "version": 2, "name": "phase"})
    assert "manifest.json: a field is missing or wrong (order: field required); build it again" in refusal(copy)
    (copy / "manifest.json").write_text("{")
    assert "is not valid JSON" in refusal(copy)
    (copy / "manifest.json").unlink()
    assert f"{copy} is not a finished phase; build it with kaiyuan-data curriculum" in refusal(copy)


@pytest.mark.parametrize("check", [(0, 1), None])
def test_a_corpus_of_another_size(copy, check):
    numbered_corpus(copy.parent.parent / "corpora/wiki", [3] * 601, 0)
    message = refusal(copy, check=check)
    assert "corpus 'wiki'" in message
    assert "changed since the order was built: build it again" in message


def test_a_corpus_of_the_same_size_but_other_lengths(copy):
    lengths = Phase(copy).corpora[1].lengths.tolist()
    numbered_corpus(copy.parent.parent / "corpora/wiki", lengths[::-1], 0)
    assert "changed since the order was built" in refusal(copy)


def test_phases_share_what_is_open(copy):
    opened: dict = {}
    first, second = Phase(copy, opened=opened), Phase(copy, check=None, opened=opened)
    assert first.corpora == second.corpora == list(opened.values())


def test_a_missing_corpus(copy):
    (copy.parent.parent / "corpora/wiki.idx").unlink()
    message = refusal(copy)
    assert "wiki.idx: corpus index not found" in message
    assert f"corpus 'wiki' of phase {copy}" in message
