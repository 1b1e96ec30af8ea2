"""Every figure about an order against a recount from order.bin and the corpora, document by document."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_tools.curriculum.build import BuiltPhase, build_phase
from data_tools.curriculum.recipe import load_order
from data_tools.curriculum.report import report_order
from tests.helpers.files.small_corpora import numbered_corpus

BUCKETS = 50
NAN = float("nan")
PHASES: list[dict[str, Any]] = [
    {
        "name": "shuffled",
        "order": "shuffle",
        "datasets": [{"corpus": "web"}, {"corpus": "wiki", "repeat": 1.5}, {"corpus": "odd", "keep": "random 0.5"}],
    },
    {
        "name": "dropped",
        "order": "curriculum",
        "datasets": [
            {"corpus": "web", "score": "score", "keep": "top 0.9", "missing_scores": "drop"},
            {"corpus": "wiki", "repeat": 3},
        ],
    },
    {
        "name": "lowest",
        "order": "curriculum",
        "rank_by": "tokens",
        "datasets": [
            {"corpus": "web", "score": "score", "repeat": 2, "missing_scores": "lowest"},
            {"corpus": "odd", "score": "score", "keep": "window 0.2-0.5", "missing_scores": "drop"},
        ],
    },
    {
        "name": "packed",
        "order": "curriculum",
        "pack": 64,
        "datasets": [
            {"corpus": "web", "score": "score", "keep": "random 0.6", "missing_scores": "drop"},
            {"corpus": "wiki"},
        ],
    },
]


class Corpus:
    """Documents whose lengths are very uneven, of which a fifth has no score; long ones score high."""

    def __init__(self, prefix: Path, size: int, seed: int, missing: float):
        generator = np.random.default_rng(seed)
        self.lengths = np.where(generator.random(size) < 0.02, generator.integers(3000, 9000, size), 3)
        self.lengths[size // 2] = 40_000
        self.scores = (
            generator.permutation(size) + np.where(self.lengths > 3, size / 3, 0) + 0.5 * generator.random(size)
        )
        self.scores[generator.permutation(size)[: round(missing * size)]] = NAN
        self.prefix = numbered_corpus(prefix, self.lengths.tolist(), 0, scores={"score": self.scores.tolist()})

    def tenths(self) -> list[np.ndarray]:
        """Sequences of each tenth, worst first; those without a score are the lowest."""
        ranked = np.argsort(np.where(np.isnan(self.scores), -np.inf, self.scores), kind="stable")
        return np.split(ranked, 10)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("corpora")
    wanted = {"web": (1000, 0.2), "wiki": (300, 0.0), "odd": (200, 0.1)}
    return {
        name: Corpus(folder / name, size, seed, missing) for seed, (name, (size, missing)) in enumerate(wanted.items())
    }


@pytest.fixture(scope="module")
def built(corpora: dict[str, Corpus], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[BuiltPhase]]:
    folder = tmp_path_factory.mktemp("phases")
    prefixes = {name: str(corpus.prefix) for name, corpus in corpora.items()}
    (folder / "order.yaml").write_text(yaml.safe_dump({"corpora": prefixes, "phases": PHASES}))
    order = load_order(folder / "order.yaml")
    return folder, [build_phase(phase, order.prefixes, folder / phase.name, threads=2) for phase in order.phases]


@pytest.fixture(scope="module")
def report(built: tuple[Path, list[BuiltPhase]]) -> dict[str, Any]:
    return json.loads(report_order(built[0] / "order.yaml", [], built[0], None, as_json=True))


def pieces(folder: Path, corpora: dict[str, Corpus]) -> list[tuple[str | None, int, int]]:
    """Name (None: padding), sequence and tokens of every entry."""
    names = [entry["name"] for entry in json.loads((folder / "manifest.json").read_text())["corpora"]]
    words = np.fromfile(folder / "order.bin", "<u8").astype(np.int64)
    packed = folder / "pieces.bin"
    parts = np.fromfile(packed, "<u4")[1::2].tolist() if packed.exists() else None
    found = []
    for at, word in enumerate(words.view("<u8").tolist()):
        dataset, sequence = word >> 48, word & (2**48 - 1)
        name = names[dataset] if dataset < len(names) else None
        found.append((name, sequence, parts[at] if parts else int(corpora[str(name)].lengths[sequence])))
    return found


@pytest.mark.parametrize("number", range(len(PHASES)), ids=lambda number: str(PHASES[number]["name"]))
def test_shares_along_the_tokens(
    number: int, built: tuple[Path, list[BuiltPhase]], corpora: dict[str, Corpus], report: dict
) -> None:
    folder = built[0] / str(PHASES[number]["name"])
    found = pieces(folder, corpora)
    total = sum(tokens for *_, tokens in found)
    owner = np.repeat([name or "" for name, *_ in found], [tokens for *_, tokens in found])
    edges = [-(-total * bucket // BUCKETS) for bucket in range(BUCKETS + 1)]
    along, phase = report["along"][number], report["phases"][number]
    assert [edge - phase["start"] for edge in along["tokens"]] == edges[1:]
    for name, shares in along["share"].items():
        for share, (first, end) in zip(shares, pairwise(edges), strict=True):
            there = owner[first:end]
            assert share == pytest.approx((there == name).sum() / max((there != "").sum(), 1), abs=1e-6)
    for name, counted in phase["datasets"].items():
        tokens = int((owner == name).sum())
        assert counted == {"tokens": tokens, "share": pytest.approx(tokens / (owner != "").sum())}


@pytest.mark.parametrize("number", [1, 2])
def test_mean_quality_along_the_tokens(
    number: int, built: tuple[Path, list[BuiltPhase]], corpora: dict[str, Corpus], report: dict
) -> None:
    found = pieces(built[0] / str(PHASES[number]["name"]), corpora)
    quantile = {
        (name, int(sequence)): rank / len(corpora[name].lengths)
        for name in ("web", "odd")
        for rank, sequence in enumerate(np.concatenate(corpora[name].tenths()))
    }
    total = sum(tokens for *_, tokens in found)
    edges = [-(-total * bucket // BUCKETS) for bucket in range(BUCKETS + 1)]
    owner = np.repeat([name for name, *_ in found], [tokens for *_, tokens in found])
    ranks = np.repeat([quantile.get(one[:2], NAN) for one in found], [tokens for *_, tokens in found])
    for name in {"web", "odd"} & set(report["along"][number]["mean_quantile"]):
        means = report["along"][number]["mean_quantile"][name]
        for mean, (first, end) in zip(means, pairwise(edges), strict=True):
            here = ranks[first:end][owner[first:end] == name]
            # Documents without a score are a fifth of the corpus, in no order that a recount could know.
            if len(here) and (np.isnan(here).any() or here.min() < 0.2):
                continue
            assert (mean is None) == (len(here) == 0)
            assert mean is None or mean == pytest.approx(here.mean(), abs=0.0051)


def test_exposure(built: tuple[Path, list[BuiltPhase]], corpora: dict[str, Corpus], report: dict) -> None:
    rows = {row["dataset"]: row for row in report["exposure"]}
    for name, corpus in corpora.items():
        whole, seen = 0.0, np.zeros(10)
        for phase in PHASES:
            line = next((line for line in phase["datasets"] if line["corpus"] == name), None)
            if line is None:
                continue
            given = np.zeros(len(corpus.lengths))
            for owner, sequence, tokens in pieces(built[0] / str(phase["name"]), corpora):
                if owner == name:
                    given[sequence] += tokens
            whole += given.sum() / corpus.lengths.sum()
            if "score" in line:
                seen += [given[tenth].sum() / corpus.lengths[tenth].sum() for tenth in corpus.tenths()]
            else:
                seen += given.sum() / corpus.lengths.sum()
        assert rows[name]["whole"] == pytest.approx(whole)
        if rows[name]["score"] is None:
            assert rows[name]["seen"] == pytest.approx([whole])
        else:
            missing = round(10 * np.isnan(corpus.scores).mean())
            assert rows[name]["seen"][missing:] == pytest.approx(seen[missing:].tolist())


def test_what_curriculum_prints(built: tuple[Path, list[BuiltPhase]], corpora: dict[str, Corpus]) -> None:
    for phase in built[1]:
        found = pieces(phase.folder, corpora)
        tokens = sum(count for name, _, count in found if name)
        text = str(phase)
        assert f"{phase.documents:,} documents" in text
        for line in text.splitlines():
            if match := re.match(r" +(\w+) +([\d.]+) % of the documents' tokens, ([\d,]+) documents with copies", line):
                own = sum(count for name, _, count in found if name == match[1])
                assert float(match[2]) == pytest.approx(100 * own / tokens, abs=0.051)
        padding = sum(count for name, _, count in found if not name)
        if padding:
            assert f"{100 * padding / (tokens + padding):.2f} % padding of their tokens" in text


def test_a_share_of_the_corpus_where_documents_without_a_score_are_dropped(tmp_path: Path) -> None:
    """100 documents of 10 tokens, 20 without a score: 90 % of the others are 72 % of the corpus."""
    scores = [NAN] * 20 + [float(at) for at in range(80)]
    prefix = numbered_corpus(tmp_path / "web", [10] * 100, 0, scores={"score": scores})
    line = {"corpus": "web", "score": "score", "keep": "top 0.9", "missing_scores": "drop"}
    phase = {"name": "one", "order": "curriculum", "datasets": [line]}
    (tmp_path / "order.yaml").write_text(yaml.safe_dump({"corpora": {"web": str(prefix)}, "phases": [phase]}))
    order = load_order(tmp_path / "order.yaml")
    build_phase(order.phases[0], order.prefixes, tmp_path / "one", threads=1)
    (row,) = json.loads(report_order(tmp_path / "order.yaml", [], tmp_path, None, as_json=True))["exposure"]
    assert row["whole"] == pytest.approx(0.72)
    assert row["seen"] == pytest.approx([0, 0, 0.2, *[1] * 7])


def test_a_phase_of_an_earlier_version_is_read_and_says_what_it_lacks(
    built: tuple[Path, list[BuiltPhase]], corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    recipe = built[0] / "order.yaml"
    for phase in PHASES:
        folder = tmp_path / str(phase["name"])
        folder.mkdir()
        for name in ("manifest.json", "profile.json"):
            (folder / name).write_bytes((built[0] / str(phase["name"]) / name).read_bytes())
    old = json.loads((tmp_path / "dropped/profile.json").read_text())
    del old["version"]
    (tmp_path / "dropped/profile.json").write_text(json.dumps(old))
    text = report_order(recipe, [], tmp_path, None, as_json=False)
    assert "dropped was built by an earlier version: along the tokens each document counts where it begins" in text
    assert (
        "dropped leaves documents without a score out of the corpora" in text and "web (200 of 1,000 documents)" in text
    )
    assert "lowest was built" not in text
    assert "dropped was built by an earlier version" in (tmp_path / "report.html").read_text()
