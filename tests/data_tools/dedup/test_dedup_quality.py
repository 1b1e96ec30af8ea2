"""Against exact all-pairs Jaccard on real text: what is found, what is not joined, and clusters against SciPy."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix, triu
from scipy.sparse.csgraph import connected_components

from data_tools.dedup import edges as edges_module
from data_tools.dedup.arrays import CHUNK, PAIR, chunks
from data_tools.dedup.deduplicate import deduplicate
from data_tools.dedup.request import Request, make_recipe
from data_tools.dedup.signatures import text_memory
from data_tools.engines.local import LocalEngine
from data_tools.steps.datasets import reading_settings
from tests.helpers.files.json_lines import write_rows
from tests.helpers.files.near_copies import edited, real_documents, with_near_copies


def columns(path: Path, output: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    request = Request((str(path),), output, columns=True, max_removed=1.0, **options)
    report = deduplicate(request, reading_settings(), LocalEngine(1))
    return pq.read_table(output / "columns").to_pylist(), report


def exact_pairs(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """All pairs with at least this Jaccard index of their word 5-grams; for ASCII, by `re` and SciPy."""
    numbers: dict[tuple[str, ...], int] = {}
    rows, places = [], []
    for row, text in enumerate(texts):
        words = re.findall("[a-z]+", text.lower())
        for gram in {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}:
            rows.append(row)
            places.append(numbers.setdefault(gram, len(numbers)))
    matrix = csr_matrix((np.ones(len(rows), np.int64), (rows, places)), (len(texts), len(numbers)))
    shared = triu(matrix @ matrix.T, 1).tocoo()
    sizes = np.asarray(matrix.sum(axis=1)).ravel()
    index = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    found = zip(shared.row.tolist(), shared.col.tolist(), index.tolist(), strict=True)
    return {(a, b): value for a, b, value in found if value >= threshold}


def components(count: int, pairs: Any) -> np.ndarray:
    pairs = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    graph = csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return with_near_copies(real_documents(3000, 150), every=2)


@pytest.fixture(scope="module")
def truth(texts: list[str]) -> dict[tuple[int, int], float]:
    return exact_pairs(texts, 0.7)


def test_recall_and_precision_against_all_pairs(
    tmp_path: Path, texts: list[str], truth: dict[tuple[int, int], float]
) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    rows, report = columns(tmp_path / "a.jsonl", tmp_path / "out")
    cluster = [row["cluster"] for row in rows]
    found = [cluster[a] == cluster[b] for a, b in truth]
    expected = components(len(texts), truth)
    assert len(truth) > 600
    assert np.mean(found) >= 0.99
    # Whoever is joined is joined by pairs that pass the check: a cluster lies in one true component.
    by_cluster: dict[int, set[int]] = {}
    for number, name in enumerate(cluster):
        by_cluster.setdefault(name, set()).add(int(expected[number]))
    assert max(map(len, by_cluster.values())) == 1
    for pair in report["pairs"]:
        assert pair["jaccard"] > 0


def test_verified_pairs_have_the_exact_index_and_clusters_are_scipys(
    tmp_path: Path, texts: list[str], truth: dict[tuple[int, int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edges_module, "PAIRS_PER_TASK", 200)  # several tasks
    kept: list[Any] = []
    find = edges_module.EdgeFinder.find

    def keep(self: Any, scopes: Any) -> Any:
        found = find(self, scopes)
        for each in found:
            near = [pairs for pairs in each.near_edges()]
            candidates = np.concatenate(list(chunks(each.near, PAIR, CHUNK)))
            index = np.concatenate([np.fromfile(path) for path in each.jaccard])
            kept.append((np.concatenate(near), np.concatenate(list(each.exact_edges())), candidates, index))
        return found

    monkeypatch.setattr(edges_module.EdgeFinder, "find", keep)
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    rows, _ = columns(tmp_path / "a.jsonl", tmp_path / "out")
    near, exact, candidates, index = kept[0]
    assert len(index) == len(candidates) > 200
    # Precision 1, pair by pair; and an index below the threshold is one in truth too.
    for pair, value in zip(candidates.tolist(), index.tolist(), strict=True):
        assert truth.get((pair[0], pair[1]), 0.0) == (pytest.approx(value, abs=1e-12) if value >= 0.7 else 0.0)
    labels = components(len(texts), [*map(tuple, near.tolist()), *map(tuple, exact.tolist())])
    cluster = np.array([row["cluster"] for row in rows])
    assert len(np.unique(cluster)) == labels.max() + 1
    assert len(np.unique(np.stack([cluster, labels]), axis=1).T) == labels.max() + 1


def test_long_documents_full_of_the_same_boilerplate_are_not_joined(tmp_path: Path) -> None:
    """40 kB each, of which a third is a menu and a licence that all share."""
    pieces = real_documents(400, 250)
    shared = "\n".join(pieces[:6])
    documents = [shared + "\n" + "\n".join(pieces[6 + 13 * i : 19 + 13 * i]) for i in range(30)]
    assert min(map(len, documents)) > 30_000
    copy = edited(documents[3], 0.01, random.Random(1), ["banana"])
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in [*documents, copy]])
    for name in ("auto", "characters"):
        rows, _ = columns(tmp_path / "a.jsonl", tmp_path / name, recipe=make_recipe(None, shingles=name))
        assert [row["kaiyuan_id"] for row in rows if row["duplicate_of"] is not None] == [30]


@pytest.mark.parametrize("order", [1, 2])
def test_the_clusters_do_not_depend_on_the_order_of_the_documents(tmp_path: Path, texts: list[str], order: int) -> None:
    texts = texts[:1200]
    by_order = []
    for seed in (0, order):
        numbers = list(range(len(texts)))
        random.Random(seed).shuffle(numbers)
        write_rows(tmp_path / f"{seed}.jsonl", [{"text": texts[number], "n": number} for number in numbers])
        rows, _ = columns(tmp_path / f"{seed}.jsonl", tmp_path / f"out{seed}", task_bytes=200_000 * (seed + 1))
        clusters: dict[int, set[int]] = {}
        for number, row in zip(numbers, rows, strict=True):
            clusters.setdefault(row["cluster"], set()).add(number)
        by_order.append(sorted(map(sorted, clusters.values())))
    assert by_order[0] == by_order[1]
    assert any(len(members) > 1 for members in by_order[0])


def test_the_preset_keeps_what_the_released_pipeline_keeps(tmp_path: Path, texts: list[str]) -> None:
    """Its rule on signatures, which are compared with its own code's elsewhere: who shares a band is one component, of
    which the smallest id stays, with the sum of all counts."""
    texts = [*texts, "four words are short", "four words are short"]
    recipe = make_recipe("kaiyuan")
    offsets, data = text_memory(pa.array(texts, pa.large_string()))
    signatures, shingles, _ = recipe.signer().sign(offsets, data)
    pairs = set()
    for band in range(14):
        first: dict[bytes, int] = {}
        for row in np.flatnonzero(shingles):
            key = signatures[row, 9 * band : 9 * band + 9].tobytes()
            if first.setdefault(key, int(row)) != row:
                pairs.add((first[key], int(row)))
    labels = components(len(texts), pairs)
    copies = np.arange(len(texts)) % 3 + 1
    write_rows(
        tmp_path / "a.jsonl",
        [{"text": t, "duplicate_count": float(n)} for t, n in zip(texts, copies.tolist(), strict=True)],
    )
    rows, _ = columns(tmp_path / "a.jsonl", tmp_path / "out", recipe=recipe)
    kept = [number for number, row in enumerate(rows) if row["duplicate_of"] is None]
    assert kept == sorted(np.unique(labels, return_index=True)[1].tolist())
    assert [rows[number]["duplicate_count"] for number in kept] == [
        int(copies[labels == labels[number]].sum()) for number in kept
    ]
    assert len(kept) < len(texts) - 500
