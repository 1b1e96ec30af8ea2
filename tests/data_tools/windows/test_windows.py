"""Windows at quantiles against one sort in NumPy: ties, missing scores, one value; equal budgets; and the errors."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from numpy.typing import NDArray

from data_tools import _index
from data_tools.curriculum.build import build_recipe
from data_tools.windows.cut import cut_windows
from data_tools.windows.options import WindowOptions
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_sealed_json
from tests.helpers.files.small_corpora import numbered_corpus
from tests.helpers.references.algorithm1 import SELECTION, draw

SEED, SIZE = 7, 1500
REPORT = [(0.0, 0.02), (0.15, 0.17), (0.3, 0.32), (0.45, 0.47), (0.6, 0.62), (0.75, 0.77)]
OTHER = ["0-1/7", "1/7 - 0.15", "0.97-1"]
ALL_FILES = ("order.yaml", "windows.json", "manifest.json")
RANDOM = np.random.default_rng(11)
ENDS = ((np.greater, "highest"), (np.greater_equal, "lowest"))
SCORES: dict[str, NDArray[np.float64]] = {
    "distinct": RANDOM.permutation(SIZE).astype(float),
    "six values": RANDOM.integers(0, 6, SIZE).astype(float),
    "one value": np.full(SIZE, 3.5),
    "odd values": RANDOM.choice([0.0, -0.0, 1e308, -1e308, math.inf, -math.inf], SIZE),
    "a third missing": np.where(RANDOM.random(SIZE) < 0.3, math.nan, RANDOM.integers(0, 9, SIZE)),
}
LENGTHS = RANDOM.integers(1, 9, SIZE)


def corpus(folder: Path, scores: NDArray[np.float64], name: str = "web") -> Path:
    lengths = LENGTHS[: len(scores)].tolist()
    return numbered_corpus(folder / f"{name}_text_document", lengths, 1, scores={"quality": scores.tolist()})


def cut(words: list[str], output: Path, **options: Any) -> dict[str, Any]:
    """The windows of a corpus without a tokenizer."""
    how = {name: options.pop(name) for name in ("threads", "memory", "force") if name in options}
    settings = WindowOptions(**{"scores": ["quality"], "samples": None, "seed": SEED, **options})
    cut_windows(words, settings, output, **how)
    return read_sealed_json(output / "windows.json", "windows")


def descending(scores: NDArray[np.float64], policy: str) -> list[int]:
    """Documents from the best; equal scores by the draw, written apart from the builder's."""
    seed = xxhash.xxh3_64_intdigest(f"{SEED}\0web".encode())
    rows = [row for row in range(len(scores)) if policy == "lowest" or not math.isnan(scores[row])]
    value = [-math.inf if math.isnan(score) else float(score) for score in scores]
    present = [not math.isnan(score) for score in scores]
    return sorted(rows, key=lambda row: (present[row], value[row], draw(seed, SELECTION, row)), reverse=True)


def expected_window(ranked: list[int], bounds: tuple[Fraction, Fraction], by: str) -> list[int]:
    """Documents whose place from the best lies in the bounds: of documents rounded to the nearest number of them, of
    tokens those that begin in the bounds."""
    near, far = bounds
    if by == "documents":
        first, last = (math.floor(bound * len(ranked) + Fraction(1, 2)) for bound in bounds)
        return ranked[first:last]
    tokens = LENGTHS[ranked]
    begin = np.cumsum(tokens) - tokens
    return [row for row, at in zip(ranked, begin.tolist(), strict=True) if near * sum(tokens) <= at < far * sum(tokens)]


def documents(phase: Path) -> list[int]:
    return (np.fromfile(phase / "order.bin", "<u8") & np.uint64(2**48 - 1)).astype(int).tolist()


@pytest.mark.parametrize("by", ["documents", "tokens"])
@pytest.mark.parametrize("kind", SCORES)
def test_windows_are_those_of_one_sort(tmp_path: Path, kind, by: str) -> None:
    scores = SCORES[kind]
    policies = ["drop", "lowest"] if np.isnan(scores).any() else ["refuse"]
    prefix = corpus(tmp_path, scores)
    windows = [] if kind == "distinct" else OTHER
    asked = [tuple(map(Fraction, window.split("-"))) for window in OTHER] if windows else REPORT
    for policy in policies:
        found = cut([f"web={prefix}"], tmp_path / policy, by=by, missing_scores=policy, windows=windows)
        ranked = descending(scores, policy)
        build_recipe(
            tmp_path / policy / "order.yaml",
            [f"phases[{number}].tokens=all" for number in range(len(asked))],
            tmp_path / f"{policy} whole",
            None,
            threads=2,
        )
        total = len(ranked) if by == "documents" else int(LENGTHS[ranked].sum())
        assert [tuple(window["asked"]) for window in found["windows"]] == [tuple(map(float, pair)) for pair in asked]
        for window, pair in zip(found["windows"], asked, strict=True):
            bounds = (Fraction(str(pair[0])), Fraction(str(pair[1])))
            rows = expected_window(ranked, bounds, by)
            assert sorted(documents(tmp_path / f"{policy} whole" / window["phase"])) == sorted(rows)
            assert set(documents(tmp_path / policy / window["phase"])) <= set(rows)
            held = scores[rows]
            assert (window["documents"], window["tokens"]) == (len(rows), LENGTHS[rows].sum())
            ends = [held[-1], held[0]]
            assert [window["lowest"], window["highest"]] == [float(x) if math.isfinite(x) else None for x in ends]
            place = ranked.index(rows[0])
            above = place if by == "documents" else int(LENGTHS[ranked[:place]].sum())
            size = len(rows) if by == "documents" else int(LENGTHS[rows].sum())
            assert window["bounds"] == pytest.approx([above / total, (above + size) / total], abs=1e-12)
            # Exact to one document.
            one = 1 / total if by == "documents" else LENGTHS.max() / total
            assert abs(window["bounds"][0] - window["asked"][0]) <= one
            assert abs(window["bounds"][1] - window["asked"][1]) <= one


def test_every_window_gives_the_same_tokens(tmp_path: Path) -> None:
    words = [
        f"{name}={corpus(tmp_path, SCORES[kind], name)}" for name, kind in (("web", "distinct"), ("b", "one value"))
    ]
    found = cut(words, tmp_path / "windows")
    least = min(window["tokens"] for window in found["windows"])
    assert found["tokens"] == least and len(found["windows"]) == 12
    for window in found["windows"]:
        phase = Phase(tmp_path / "windows" / window["phase"])
        assert least <= phase.tokens < least + LENGTHS.max()
        assert (phase.documents, phase.tokens) == (window["phase_documents"], window["phase_tokens"])
        assert phase.manifest["order"] == "shuffle" and window["repeat"] == 1.0
    assert {name: entry["tokens"] for name, entry in found["datasets"].items()} == {
        "web": LENGTHS.sum(),
        "b": LENGTHS.sum(),
    }
    prefix = found["datasets"]["web"]["prefix"]
    assert (tmp_path / "windows" / prefix).resolve() == (tmp_path / "web_text_document").resolve()


def test_a_window_is_repeated_only_when_asked(tmp_path: Path) -> None:
    word = f"web={corpus(tmp_path, SCORES['distinct'])}"
    held = cut([word], tmp_path / "held")["windows"]
    least = min(held, key=lambda window: window["tokens"])
    wanted = 2 * max(window["tokens"] for window in held) + 1
    with pytest.raises(
        UserError, match=rf"--tokens {wanted:,}: 6 of 6 windows hold fewer, {least['name']} {least['tokens']}; "
    ):
        cut([word], tmp_path / "more", tokens=str(wanted))
    assert not (tmp_path / "more").exists()
    settings = WindowOptions(["quality"], samples=None, seed=SEED, tokens=str(wanted), repeat=True)
    printed = cut_windows([word], settings, tmp_path / "more")
    found = read_sealed_json(tmp_path / "more" / "windows.json", "windows")
    for window, once in zip(found["windows"], held, strict=True):
        assert wanted <= window["phase_tokens"] < wanted + LENGTHS.max()
        assert window["repeat"] == window["phase_tokens"] / once["tokens"] > 2
        assert f"{window['name']}: repeated {window['repeat']:.2f} times" in printed
        copies = np.bincount(documents(tmp_path / "more" / window["phase"]))
        assert copies.max() - copies[copies > 0].min() <= 1  # no document much oftener than another


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_recipe_beside_the_windows_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = f"web={corpus(tmp_path, SCORES['six values'])}"
    cut([word], tmp_path / "windows", by="tokens")
    monkeypatch.chdir("/")
    build_recipe(tmp_path / "windows" / "order.yaml", [], tmp_path / "again", None, threads=1)
    windows = contents(tmp_path / "windows")
    assert contents(tmp_path / "again") == {name: data for name, data in windows.items() if name not in ALL_FILES}


def test_windows_that_the_score_does_not_tell_apart_are_told(tmp_path: Path) -> None:
    words = [f"web={corpus(tmp_path, SCORES['one value'])}"]
    printed = cut_windows(words, WindowOptions(["quality"], samples=None), tmp_path / "windows")
    assert "web_0.75-0.77: all scores are 3.5; which document is in which was drawn by the seed" in printed
    distinct = [f"web={corpus(tmp_path, SCORES['distinct'])}"]
    assert "drawn by the seed" not in cut_windows(
        distinct, WindowOptions(["quality"], samples=None), tmp_path / "other"
    )


def test_same_bytes_for_any_threads_and_memory(tmp_path: Path) -> None:
    """More rows than the smallest memory holds: the sort spills."""
    size = 1_800_000
    generator = np.random.default_rng(2)
    lengths, scores = generator.integers(1, 9, size), generator.integers(0, 100, size).astype(float)
    prefix = corpus(tmp_path, SCORES["distinct"])
    writer = _index.IndexWriter(os.fsencode(f"{prefix}.idx"), 8)
    writer.add(lengths.astype(np.int32))
    writer.finish()
    os.truncate(f"{prefix}.bin", 2 * int(lengths.sum()))  # a hole: no token is read
    pq.write_table(pa.table({"quality": scores}), f"{prefix}.meta.parquet")
    many = cut([f"web={prefix}"], tmp_path / "many", by="tokens", windows=["0.3-0.32"], threads=3)
    cut([f"web={prefix}"], tmp_path / "one", by="tokens", windows=["0.3-0.32"], threads=1, memory=97 << 20)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    window = many["windows"][0]
    above, from_lowest = (lengths[test(scores, window[end])].sum() / lengths.sum() for test, end in ENDS)
    assert above <= window["bounds"][0] == pytest.approx(0.3, abs=1e-6)
    assert from_lowest >= window["bounds"][1] == pytest.approx(0.32, abs=1e-6)


@pytest.fixture
def word(tmp_path: Path) -> str:
    return f"web={corpus(tmp_path, SCORES['a third missing'])}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"corpus 'web' \(.*web_text_document\): \d+ of 1,500 scores 'quality' are missing; score it again"),
        ({"missing_scores": "keep"}, "--missing-scores keep: write one of refuse, drop, lowest"),
        ({"scores": ["edu"]}, r"web_text_document.meta.parquet: unknown score column 'edu'"),
        ({"scores": ["domain"]}, r"meta.parquet: column 'domain' holds no numbers"),
        ({"scores": ["other=edu"]}, "--score other=edu: there is no dataset 'other'; there are web"),
        ({"scores": ["a", "b"]}, "--score a b: name one column, or NAME=COLUMN"),
        ({"tops": ["30"]}, "--top 30: write a share from 0 to 1"),
        ({"tops": ["0.99"]}, "--top or --width: 'window 0.99-1.01'; the bounds are fractions from the best score"),
        ({"tops": ["0.3", "0.30"]}, "--top: 0.30?-0.32 is named twice"),
        ({"tops": ["nan"]}, "--top nan: write a share from 0 to 1"),
        ({"width": "sNaN"}, "--width sNaN: write a share from 0 to 1"),
        ({"tops": ["half"]}, "--top 'half': write a share from the best score"),
        ({"width": "0"}, "--top or --width: 'window 0-0'; the window is empty"),
        ({"windows": ["0.32-0.30"]}, "--window: 'window 0.32-0.30'; the bounds are reversed"),
        ({"windows": ["0.3-0.32"], "tops": ["0.5"]}, "--top and --window: name windows in one of the two ways"),
        ({"by": "bytes"}, "--by bytes: write --by documents or --by tokens"),
        ({"tokens": "1.5"}, "--tokens is 1.5; it counts tokens"),
        ({"missing_scores": "drop", "width": "1e-6"}, "'web': window 0-0.000001 of its .* holds no token; widen it"),
        ({"seed": -1}, "--seed"),
        ({"missing_scores": "drop", "tokens": "90M", "repeat": True}, "--tokens 90,000,000: is more than 500 times"),
    ],
    ids=str,
)  # fmt: skip
def test_refuses(tmp_path: Path, word: str, options, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        cut([word], tmp_path / "windows", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "windows").exists()


def test_refuses_corpora(tmp_path: Path, word: str) -> None:
    for words, message in (
        ([f"{tmp_path}/absent"], "absent.idx: not found; name a corpus"),
        ([word, word], "have one name; write NAME=PREFIX"),
    ):
        with pytest.raises(UserError, match=message):
            cut(words, tmp_path / "windows")
    with pytest.raises(UserError, match=r"tokenizer.json: tokenizer not found, which made"):
        cut([word], tmp_path / "windows", samples=3, missing_scores="drop")
    (tmp_path / "web_text_document.manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"manifest.json: not found, so the corpus has no scores; make it with preprocess"
    ):
        cut([word], tmp_path / "windows")


def test_nothing_is_replaced_that_was_not_made_from_the_same(tmp_path: Path) -> None:
    word, folder = f"web={corpus(tmp_path, SCORES['distinct'])}", tmp_path / "windows"
    cut([word], folder)
    before = contents(folder)
    cut([word], folder)
    assert contents(folder) == before
    with pytest.raises(UserError, match="holds windows of scores already, made from something else"):
        cut([word], folder, width="0.05")
    cut([word], folder, width="0.05", force=True)
    changed = contents(folder)
    assert changed != before
    (folder / "order.yaml").write_text("phases: []\n")
    with pytest.raises(UserError, match=r"order.yaml: was changed after it was written"):
        cut([word], folder, force=True)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(UserError, match="windows: exists and is not windows of scores"):
        cut([word], folder, force=True)


def test_command(tmp_path: Path, command: Callable[..., Any]) -> None:
    prefixes = [corpus(tmp_path, SCORES[kind], name) for name, kind in (("web", "distinct"), ("b", "six values"))]
    words = [f"{name}={prefix}" for name, prefix in zip(("web", "b"), prefixes, strict=True)]
    options = ["--output", str(tmp_path / "windows"), "--top", "0", "0.5", "--width", "0.1", "--no-portrait", "--json"]
    done = command("quantile", *words, "--score", "web=quality", "b=quality", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [window["phase"] for window in found["windows"]] == ["web_0-0.1", "web_0.5-0.6", "b_0-0.1", "b_0.5-0.6"]
    written = read_sealed_json(tmp_path / "windows" / "windows.json", "windows")
    assert written.pop("seal") and found == written
    verified = command("verify", *[str(tmp_path / "windows" / window["phase"]) for window in found["windows"]])
    assert "4 phases are whole" in verified.stdout
    failed = command("quantile", words[0], "--score", "edu", "--output", str(tmp_path / "other"), "--no-portrait")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "unknown score column 'edu'" in failed.stderr
