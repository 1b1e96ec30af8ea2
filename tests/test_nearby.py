"""A path that is not what was asked for: the error names the right one where it lies near."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.nearby import corpus_argument, corpus_prefix, corpus_word, near_corpus, near_phase, near_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two corpora, two phases and a run, by the names of their files."""
    for name in ("corpora/web_text_document", "corpora/books_text_document"):
        for suffix in (".idx", ".bin", ".manifest.json", ".meta.parquet"):
            path = tmp_path / f"{name}{suffix}"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    for name in ("phases/first", "phases/second"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / "runs/mine/checkpoints/step_25").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", ["", ".idx", ".bin", ".manifest.json", ".meta.parquet"])
def test_each_file_of_a_corpus_names_it(folder: Path, suffix: str) -> None:
    prefix = Path("corpora/web_text_document")
    assert corpus_argument(f"{prefix}{suffix}") == corpus_prefix(Path(f"{prefix}{suffix}")) == prefix
    assert corpus_word(f"web={prefix}{suffix}") == f"web={prefix}"


def test_a_suffix_that_belongs_to_no_corpus_stays(folder: Path) -> None:
    for name in ("other.bin", ".idx", "x/.bin", "corpora"):
        assert corpus_prefix(Path(name)) == Path(name)
    assert corpus_word("rules=a.bin") == "rules=a.bin"


def test_a_phase_is_an_argument_too(folder: Path) -> None:
    assert corpus_argument("phases/first") == Path("phases/first")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("corpora/web", "; did you mean corpora/web_text_document?"),
        ("corpora/wep_text_document", "; did you mean corpora/web_text_document?"),
        ("corpora", "; it holds corpora/books_text_document, corpora/web_text_document"),
        ("phases", "; it holds phases/first, phases/second"),
        ("nowhere/x", ""),
    ],
)
def test_corpora_near_a_wrong_prefix(folder: Path, given: str, expected: str) -> None:
    assert near_corpus(Path(given)) == expected
    with pytest.raises(UserError) as error:
        corpus_argument(given)
    assert str(error.value) == f"{given}: corpus not found; name it without .bin or .idx{expected}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("phases", "; it holds phases/first, phases/second"),
        ("phases/frist", "; did you mean phases/first?"),
        ("corpora/web_text_document", "; it is a corpus: an order recipe makes phases of corpora"),
        ("corpora/web_text_document.idx", "; it is a corpus: an order recipe makes phases of corpora"),
        ("nowhere/x", ""),
    ],
)
def test_phases_near_a_wrong_folder(folder: Path, given: str, expected: str) -> None:
    assert near_phase(Path(given)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs", "; it holds runs/mine"),
        ("runs/mine/checkpoints/step_25", "; it belongs to the run runs/mine"),
        ("runs/mine/metrics.jsonl", "; it belongs to the run runs/mine"),
        ("runs/min", "; did you mean runs/mine?"),
        ("phases", ""),
    ],
)
def test_runs_near_a_wrong_folder(folder: Path, given: str, expected: str) -> None:
    assert near_run(Path(given)) == expected


def test_many_are_not_all_named(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.idx").touch()
    assert near_corpus(tmp_path).endswith("/3 and 5 more")
