"""`kaiyuan-data audit`: planted domains and quality are found, of corpora and of documents alike."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.scores.audit import AuditOptions, audit
from data_tools.scores.portrait import symbol_share, type_token_ratio
from data_tools.steps.datasets import reading_settings
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows

DOMAINS = ["code", "math", "web"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Documents whose quality is how few of their words repeat; `domainish` sees the domain, `quality` does not."""
    draw = random.Random(2)
    found = []
    for number in range(900):
        domain = draw.choice(DOMAINS)
        quality = draw.random()
        words = [f"w{draw.randrange(2 + int(200 * quality))}" for _ in range(60)]
        found.append(
            {
                "text": f"{domain}{number} " + " ".join(words) + ("!" * 60 if quality < 0.2 else ""),
                "domain": domain,
                "quality": quality if number % 50 else None,
                "noisy": quality + draw.gauss(0, 0.1),
                "domainish": DOMAINS.index(domain) + draw.random() * 0.5,
                "also": DOMAINS.index(domain) + draw.random() * 0.5,
                "rules_gopher": float(quality > 0.5),
                "language": draw.choice(["en", "de"]),
            }
        )
    return write_rows(tmp_path_factory.mktemp("audit") / "in.jsonl", found), found


def look(path: Path, *scores: str, **more: Any) -> dict[str, Any]:
    options = AuditOptions(scores, **more)
    return json.loads(audit([str(path)], options, reading_settings(), as_json=True))


def test_planted_domains_and_quality_are_found(rows: Any) -> None:
    path, found = rows
    answer = look(path, "quality", "noisy", "domainish", "also")
    assert answer["by"] == "domain" and set(answer["groups"]) == set(DOMAINS)
    quality = np.array([np.nan if row["quality"] is None else row["quality"] for row in found])
    domain = np.array([row["domain"] for row in found])
    there = ~np.isnan(quality)
    about = answer["scores"]["quality"]
    assert (about["documents"], about["missing"]) == (there.sum(), (~there).sum())
    for name in DOMAINS:
        inside, outside = quality[there & (domain == name)], quality[there & (domain != name)]
        expected = stats.mannwhitneyu(inside, outside).statistic / len(inside) / len(outside)
        assert about["groups"][name]["auc"] == pytest.approx(expected)
        assert about["groups"][name]["median"] == pytest.approx(np.median(inside))
    assert about["between"] < 0.02
    assert answer["scores"]["domainish"]["between"] > 0.8
    assert answer["scores"]["domainish"]["groups"]["web"]["auc"] == 1.0
    pairs = {tuple(pair["scores"]): pair for pair in answer["pairs"]}
    both = pairs["domainish", "also"]
    assert both["over_all"] > 0.8 and abs(both["mean"]) < 0.15
    assert pairs["quality", "noisy"]["within"]["code"] > 0.9
    warned = " ".join(answer["warnings"])
    assert "domainish ranks domains rather than quality (AUC of" in warned and "also ranks domains" in warned
    assert "domainish and also agree on domains, not on documents" in warned
    assert "quality ranks" not in warned and "quality and noisy" not in warned


def test_the_portrait_shows_what_the_score_means(rows: Any) -> None:
    path, found = rows
    portrait = look(path, "quality", quantiles=5)["scores"]["quality"]["portrait"]
    assert [row["documents"] for row in portrait] == [176, 176, 177, 176, 177]
    assert all(one["to"] <= other["from"] for one, other in pairwise(portrait))
    assert portrait[0]["type_token_ratio"] < 0.5 < portrait[-1]["type_token_ratio"]
    assert portrait[0]["symbols"] > 0.1 > portrait[-1]["symbols"]
    assert portrait[0]["fails"]["rules_gopher"] == 1 and portrait[-1]["fails"]["rules_gopher"] == 0
    assert set(portrait[0]["labels"]) == {"language"}
    lengths = {row["text"][:200]: (row["quality"], len(row["text"].encode())) for row in found if row["quality"]}
    for row in portrait:
        assert len(row["samples"]) == 3 and sum(row["groups"].values()) == pytest.approx(1)
        mine = [size for quality, size in lengths.values() if row["from"] <= quality <= row["to"]]
        assert row["bytes"] == pytest.approx(np.mean(mine))
        for sample in row["samples"]:
            quality, _ = next(value for text, value in lengths.items() if text.startswith(sample.split()[0] + " "))
            assert row["from"] <= quality <= row["to"]


def test_a_corpus_shows_what_its_documents_show(rows: Any, tokenizer_path: Path, tmp_path: Path) -> None:
    path, _ = rows
    settings = Settings(tokenizer_path, score_keys=("quality", "domainish", "rules_gopher"), meta_keys=("language",))
    preprocess([path], tmp_path / "c", settings)
    of_corpus = look(tmp_path / "c_text_document", "quality", "domainish")
    of_documents = look(path, "quality", "domainish")
    for score in ("quality", "domainish"):
        for row in (*of_corpus["scores"][score]["portrait"], *of_documents["scores"][score]["portrait"]):
            row.pop("tokens")
    assert of_corpus == {**of_documents, "pairs": of_corpus["pairs"]}


def test_of_many_documents_a_draw_is_looked_at(rows: Any) -> None:
    path, _ = rows
    answer = look(path, "quality", most=200)
    assert (answer["documents"], answer["looked_at"]) == (900, 200)
    assert answer == look(path, "quality", most=200)
    assert answer != look(path, "quality", most=200, seed=7)


def test_table_and_page(rows: Any, tmp_path: Path, command: Any) -> None:
    path, _ = rows
    page = tmp_path / "audit.html"
    printed = command("audit", path, "--score", "quality", "domainish", "--output", page)
    assert printed.returncode == 0, printed.stderr
    assert re.search(r"quality: 882 scored, 18 missing; \d% of the variance of ranks between them", printed.stdout)
    assert "warning: domainish ranks domains rather than quality" in printed.stdout
    assert re.search(r"^best .* en|de", printed.stdout, re.MULTILINE)
    html = page.read_text()
    assert "domainish ranks domains rather than quality" in html and html.count("<details>") == 20
    assert "src=" not in html and "href=" not in html
    again = [str(path)], AuditOptions(("quality", "domainish")), reading_settings(), page
    audit(*again)
    assert page.read_text() == html
    page.write_text("mine")
    with pytest.raises(UserError, match="is not a page that this command wrote"):
        audit(*again)


def test_mistakes_are_one_line(rows: Any) -> None:
    path, _ = rows
    for scores, more, message in (
        (("edu",), {}, "^--score edu: no document has .*; there are .*quality"),
        (("language",), {}, "--score language: the column holds text"),
        (("text",), {}, "^--score text: is the text of the documents; name another column, there are .*quality"),
        (("quality",), {"by": "text"}, "^--by text: is the text of the documents"),
        (("quality", "quality"), {}, "each once"),
        (("quality",), {"by": "country"}, "^--by country: no document has .*; there are .*domain"),
        (("quality",), {"quantiles": 0}, "--quantiles 0: must be between 1 and 1,000"),
        (("quality",), {"quantiles": 1 << 40}, "--quantiles .*: must be between 1 and 1,000"),
        (("quality",), {"seed": -3}, "--seed -3: must be between 0"),
        (("quality",), {"seed": 1 << 80}, "--seed .*: must be between 0"),
    ):
        with pytest.raises(UserError, match=message):
            look(path, *scores, **more)


def test_figures_of_texts() -> None:
    assert type_token_ratio("a b " * 20) == 2 / 40 and type_token_ratio("too short") is None
    assert type_token_ratio("我们在这里学习中文和数学今天天气很好大家都高兴") == pytest.approx(22 / 23, abs=0.1)
    assert symbol_share("ab 1!") == 0.2


def test_many_groups_are_the_largest_and_the_sum_of_the_others(tmp_path: Path, command: Any) -> None:
    draw = random.Random(4)
    sizes = [70 - number for number in range(60)] + [1] * 400
    found: list[dict[str, Any]] = [
        {"text": f"t{number} {i}", "source": f"s{number:03d}", "one": draw.random(), "two": draw.random()}
        for number, size in enumerate(sizes)
        for i in range(size)
    ]
    path = write_rows(tmp_path / "in.jsonl", found)
    answer = look(path, "one", "two", by="source")
    assert answer["groups"] == [*(f"s{number:03d}" for number in range(50)), "410 others"]
    groups = answer["scores"]["one"]["groups"]
    assert [group["documents"] for group in groups.values()] == [*sizes[:50], sum(sizes[50:])]
    others = [row["one"] for row in found if row["source"] > "s049"]
    rest = [row["one"] for row in found if row["source"] <= "s049"]
    expected = stats.mannwhitneyu(others, rest).statistic / len(others) / len(rest)
    assert groups["410 others"]["auc"] == pytest.approx(expected)
    # Of the 41 sources with 30 or more documents; with each single document as a group of its own it is far more.
    large = [[row["one"] for row in found if row["source"] == f"s{number:03d}"] for number in range(41)]
    statistic = stats.kruskal(*large).statistic
    assert answer["scores"]["one"]["between"] == pytest.approx(statistic / (sum(map(len, large)) - 1))
    assert answer["warnings"] == []
    printed = command("audit", path, "--score", "one", "two", "--by", "source").stdout
    assert max(map(len, printed.splitlines())) < 300 and "410 others" in printed


def test_sources_of_one_document_each_hold_no_variance(tmp_path: Path) -> None:
    found = [{"text": f"t{number}", "source": f"s{number}", "one": number / 7} for number in range(200)]
    answer = look(write_rows(tmp_path / "in.jsonl", found), "one", by="source")
    assert answer["scores"]["one"]["between"] is None and answer["warnings"] == []


@pytest.mark.parametrize("by", [[], ["--by", "domain"]])
def test_datasets_without_a_score_or_documents_are_told(by: list[str], tmp_path: Path, command: Any) -> None:
    write_rows(tmp_path / "web.jsonl", [{"text": f"t{i}", "one": i / 9, "domain": "d"} for i in range(90)])
    write_rows(tmp_path / "zh.jsonl", [{"text": f"z{i}"} for i in range(20)])
    (tmp_path / "pq.jsonl").touch()
    words = [f"{name}={tmp_path / name}.jsonl" for name in ("pq", "web", "zh")]
    printed = command("audit", *words, "--score", "one", *by)
    assert printed.returncode == 0, printed.stderr
    assert "warning: dataset pq has no documents" in printed.stdout
    assert "warning: none of the 20 documents of dataset zh has a score one" in printed.stdout
    if not by:
        assert re.search(r"^zh +20 +0 +- +no score$", printed.stdout, re.MULTILINE)
        assert re.search(r"^pq +0 +0 +- +no score$", printed.stdout, re.MULTILINE)
        assert re.search(r"^web +90 +90 +- +4\.944$", printed.stdout, re.MULTILINE)
