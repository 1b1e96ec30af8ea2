"""Held-out corpora beside a token stream: what is refused, and what is warned of. Without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_kaiyuan.data.held_out import open_held_out, trained_on
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_run import VOCAB, write_corpus, write_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out")
    write_recipe(folder)
    write_corpus(folder / "web", 20, seed=3)
    return folder


@pytest.fixture(scope="module")
def stream(folder: Path) -> TokenStream:
    return TokenStream(sorted(path.parent for path in folder.glob("phases/*/manifest.json")), VOCAB)


def test_opens_by_name_with_and_without_the_suffix(folder: Path, stream: TokenStream) -> None:
    found = open_held_out({"a": folder / "web", "b": folder / "web.idx"}, stream)
    assert [len(found["a"]), found["a"].num_tokens] == [len(found["b"]), found["b"].num_tokens]
    assert not list(trained_on(found, stream))


@pytest.mark.parametrize("wrong", [VOCAB, VOCAB + 7])
def test_an_id_outside_the_vocabulary_is_refused_wherever_it_stands(
    folder: Path, stream: TokenStream, wrong: int, tmp_path: Path
) -> None:
    """Also below the padded vocabulary, which has a row of weights for it that no token of training trains."""
    write_corpus(tmp_path / "web", 20, seed=3)
    tokens = np.fromfile(tmp_path / "web.bin", np.uint16)
    tokens[-1] = wrong
    tokens.tofile(tmp_path / "web.bin")
    with pytest.raises(UserError, match=rf"validation\.corpora\.web: .* holds token id {wrong}, but .* is {VOCAB};"):
        open_held_out({"web": tmp_path / "web"}, stream)


def test_refused(folder: Path, stream: TokenStream, tmp_path: Path) -> None:
    write_corpus(tmp_path / "empty", 0)
    write_corpus(tmp_path / "other", 5, fingerprint="xxh3:1")
    for name, message in (
        ("missing", r"validation\.corpora\.x: .*missing\.idx: corpus index not found"),
        ("empty", r"validation\.corpora\.x: .*empty has no token to predict"),
        ("other", r"validation\.corpora\.x was made by another tokenizer than data\.phases"),
    ):
        with pytest.raises(UserError, match=message):
            open_held_out({"x": tmp_path / name}, stream)


def test_a_corpus_that_is_trained_on_is_found_by_its_file(folder: Path, stream: TokenStream, tmp_path: Path) -> None:
    for suffix in (".bin", ".idx"):
        (tmp_path / f"link{suffix}").symlink_to(folder / "corpus" / f"text{suffix}")
    found = open_held_out({"mine": tmp_path / "link", "web": folder / "web"}, stream)
    warned = list(trained_on(found, stream))
    assert len(warned) == 1 and warned[0].startswith("validation.corpora.mine: ") and "phase first" in warned[0]
