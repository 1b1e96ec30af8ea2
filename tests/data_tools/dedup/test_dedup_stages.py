"""The stages one by one: they can be sent elsewhere, and each does what its neighbours rely on."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dedup import keepers
from data_tools.dedup.arrays import read_bits, write_array, write_bits
from data_tools.dedup.clusters import MEMBER, Edges
from data_tools.dedup.deduplicate import deduplicate
from data_tools.dedup.keepers import EXACT, NEAR, STAYS, Choose, ClusterBatch, Rules
from data_tools.dedup.request import Request
from data_tools.dedup.scopes import Scope, SignedShard
from data_tools.dedup.signing import ABOUT, ABOUT_ROW
from data_tools.engines.local import LocalEngine
from data_tools.engines.stage import Record, Stage, Target
from data_tools.reading.inputs import InputFile
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Task, TaskGroup
from data_tools.steps.datasets import reading_settings
from tests.helpers.files.json_lines import write_rows


class PickledEngine(LocalEngine):
    """Does what comes back from a pickle, as another machine would."""

    def run(self, stage: Stage) -> list[Record]:
        return super().run(pickle.loads(pickle.dumps(stage)))


def test_every_stage_can_be_sent_elsewhere(tmp_path: Path) -> None:
    rows = [{"text": f"{word} " * 8 + word} for word in ("one", "two", "three") for _ in range(3)]
    write_rows(tmp_path / "a.jsonl", rows)
    reports = []
    for name, engine in (("here", LocalEngine(1)), ("there", PickledEngine(1))):
        request = Request((str(tmp_path / "a.jsonl"),), tmp_path / name, max_removed=1.0)
        reports.append(deduplicate(request, reading_settings(), engine))
    assert reports[0] == reports[1] and reports[0]["datasets"][""]["exact"] == 6


@given(flags=st.lists(st.booleans(), max_size=70), cuts=st.tuples(st.integers(0, 70), st.integers(0, 70)))
def test_bits_are_read_from_any_place(
    tmp_path_factory: pytest.TempPathFactory, flags: list[bool], cuts: tuple[int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "bits"
    write_bits(path, np.array(flags, bool))
    first, last = sorted(min(cut, len(flags)) for cut in cuts)
    assert read_bits(path, first, last).tolist() == flags[first:last]


def scope_of(folder: Any, scores: list[float], earlier: int) -> Scope:
    """Documents of three datasets in turn; the first ones are of an index."""
    shards = []
    cuts = [0, earlier, earlier + (len(scores) - earlier) // 2, len(scores)]
    for number, (first, last) in enumerate(pairwise(cuts)):
        about = np.zeros(last - first, ABOUT_ROW)
        about["id"], about["score"], about["copies"] = np.arange(first, last) + 100, scores[first:last], 1
        write_array(folder / f"{number}{ABOUT}", about)
        task = Task(InputFile("a", "json", "", 0, "", "a"), 0, 0, "")
        shard = Shard(number, number, f"d{number}", TaskGroup.of([task]))
        index = "index" if number == 0 else ""
        shards.append(SignedShard(shard, reading_settings(), str(folder / str(number)), last - first, 0, 0, index))
    return Scope("all", tuple(shards))


graphs = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    pairs=graphs,
    exact=graphs,
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), min_size=20, max_size=20),
    earlier=st.integers(0, 6),
    direct=st.booleans(),
    max_cluster=st.sampled_from([0, 0, 3]),
    parts=st.sampled_from([1, 3]),
)
def test_keepers_are_those_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory,
    pairs,
    exact,
    scores,
    earlier: int,
    direct: bool,
    max_cluster: int,
    parts: int,
) -> None:
    """Against the definition, document by document, in plain Python."""
    folder = tmp_path_factory.mktemp("keepers")
    scope = scope_of(folder, scores, earlier)
    # Groups of equal texts as stars; near edges between their first documents, none among two earlier ones.
    first = components_of(20, exact)
    stars = [(first[n], n) for n in range(20) if first[n] != n]
    near = sorted({tuple(sorted((first[a], first[b]))) for a, b in pairs if first[a] != first[b]})
    near = [(a, b) for a, b in near if b >= earlier]
    cluster = components_of(20, [*stars, *near])
    sizes = [cluster.count(n) for n in range(20)]
    members = [(n, cluster[n]) for n in range(20) if sizes[cluster[n]] > 1]
    write_array(folder / "members", np.array(members, MEMBER) if members else np.zeros(0, MEMBER))
    write_array(folder / "exact", np.array(stars, np.uint64).reshape(-1, 2))
    write_array(folder / "near", np.array(near, np.uint64).reshape(-1, 2))
    edges = Edges(scope, folder / "exact", folder / "near")
    choose = Choose(Rules(across=True, max_cluster=max_cluster, direct=direct))
    found: dict[int, tuple[int, int, int]] = {}
    for number in range(parts):
        choose(ClusterBatch(edges, folder / "members", number, parts), Target(folder, f"part{number}"))
        rows = np.fromfile(folder / f"part{number}{keepers.DECISIONS}", keepers.DECISION)
        found |= {int(r["ordinal"]): (int(r["keeper"]) - 100, int(r["fate"]), int(r["copies"])) for r in rows}

    def rank(n: int) -> tuple[Any, ...]:
        dataset = 0 if n < earlier else 1 if n < earlier + (20 - earlier) // 2 else 2
        return dataset, -(-np.inf if np.isnan(scores[n]) else scores[n]), n

    best = {group: min((n for n in range(20) if first[n] == group), key=rank) for group in set(first)}
    neighbours: dict[int, set[int]] = {n: set() for n in range(20)}
    for a, b in near:
        neighbours[best[a]].add(best[b])
        neighbours[best[b]].add(best[a])
    directly: dict[int, int] = {}
    for n in sorted(best.values(), key=rank):
        stay = [m for m in neighbours[n] if directly.get(m) == m]
        directly[n] = min(stay, key=rank) if stay else n
    for n in range(earlier, 20):
        if sizes[cluster[n]] < 2:
            assert n not in found
            continue
        texts = len({first[m] for m in range(20) if cluster[m] == cluster[n]})
        if max_cluster and texts > max_cluster:
            keeper = best[first[n]]
        elif direct:
            keeper = directly[best[first[n]]]
        else:
            keeper = min((m for m in range(20) if cluster[m] == cluster[n]), key=rank)
        fate = STAYS if keeper == n else EXACT if first[keeper] == first[n] else NEAR
        assert found[n][:2] == (keeper, fate)
    for n, (keeper, fate, copies) in found.items():
        stands_for = [m for m, row in found.items() if row[0] == n]
        assert copies == (len(stands_for) if fate == STAYS else 1), keeper


def components_of(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    label = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    return label


def test_a_short_array_is_an_error(tmp_path: Path) -> None:
    from data_tools.dedup.arrays import read_array
    from megatron_kaiyuan.errors import UserError

    write_array(tmp_path / "a", np.arange(3))
    with pytest.raises(UserError, match="ends too early"):
        read_array(tmp_path / "a", np.int64, 8, 3)
