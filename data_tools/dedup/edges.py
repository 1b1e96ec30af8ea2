"""The stages that find what joins documents: exact duplicates, candidates, and their exact check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.dedup.candidates import NEEDED, OTHERS, PAIRS, Band, FindCandidates, FindExact, JoinBands, ScopeBands
from data_tools.dedup.checking import JACCARD, PAIRS_PER_TASK, CheckPairs, Chunk, Wanted, WriteSets
from data_tools.dedup.clusters import Edges
from data_tools.dedup.request import Request
from data_tools.dedup.scopes import Scope
from data_tools.engines.stage import Engine, Stage


class EdgeFinder:
    """Runs these stages.

    Args:
        folder: of their files, named by all that these depend on.
    """

    def __init__(self, request: Request, engine: Engine, folder: Path):
        self._request, self._engine, self._folder = request, engine, folder

    def stage(self, title: str, folder: str, do: Any, tasks: Sequence[Any], names: Sequence[str]) -> Stage:
        """A stage in a folder of its own."""
        return Stage(title, self._folder / folder, do, tasks, names)

    def find(self, scopes: Sequence[Scope]) -> list[Edges]:
        """The edges of each scope, as files."""
        exact = None if self._request.is_preset and not self._request.exact_only else self._find_exact(scopes)
        nothing: list[None] = [None] * len(scopes)
        if self._request.exact_only:
            return [Edges(scope, path, None) for scope, path in zip(scopes, exact or nothing, strict=True)]
        near = self._find_candidates(scopes, exact)
        checked = self._check(scopes, near) if self._request.recipe.verify else [()] * len(scopes)
        threshold = self._request.recipe.threshold
        return [
            Edges(scope, equal, pairs[0], jaccard, threshold)
            for scope, equal, pairs, jaccard in zip(scopes, exact or nothing, near, checked, strict=True)
        ]

    def _find_exact(self, scopes: Sequence[Scope]) -> list[Path]:
        stage = self.stage("exact duplicates", "exact", FindExact(), scopes, [scope.name for scope in scopes])
        self._engine.run(stage)
        return [stage.folder / f"{name}{PAIRS}" for name in stage.names]

    def _find_candidates(self, scopes: Sequence[Scope], exact: Sequence[Path] | None) -> list[tuple[Path, int]]:
        """Pairs of each scope, and how many."""
        bands = range(self._request.recipe.bands)
        others = [path.with_name(f"{path.name.removesuffix(PAIRS)}{OTHERS}") for path in exact or ()]
        tasks = [
            Band(scope, band, others[number] if others else None)
            for number, scope in enumerate(scopes)
            for band in bands
        ]
        names = [f"{task.scope.name}-{task.number:03d}" for task in tasks]
        stage = self.stage("candidates", "bands", FindCandidates(not self._request.recipe.verify), tasks, names)
        self._engine.run(stage)
        joined = [
            ScopeBands(scope, tuple(stage.folder / f"{scope.name}-{band:03d}{PAIRS}" for band in bands))
            for scope in scopes
        ]
        stage = self.stage("unique pairs", "joined", JoinBands(), joined, [scope.name for scope in scopes])
        records = self._engine.run(stage)
        return [
            (stage.folder / f"{name}{PAIRS}", record["pairs"])
            for name, record in zip(stage.names, records, strict=True)
        ]

    def _check(self, scopes: Sequence[Scope], near: Sequence[tuple[Path, int]]) -> list[tuple[Path, ...]]:
        """Files of the Jaccard indexes of each scope's pairs."""
        recipe = self._request.recipe
        sets = [
            Wanted(signed, path.with_name(f"{scope.name}{NEEDED}"), int(start), f"{scope.name}-{number:06d}")
            for scope, (path, _) in zip(scopes, near, strict=True)
            for number, (signed, start) in enumerate(zip(scope.shards, scope.starts[:-1], strict=True))
        ]
        stage = self.stage("shingle sets", "sets", WriteSets(recipe), sets, [wanted.name for wanted in sets])
        self._engine.run(stage)
        tasks, names = [], []
        for scope, (path, count) in zip(scopes, near, strict=True):
            bases = tuple(str(stage.folder / f"{scope.name}-{number:06d}") for number in range(len(scope.shards)))
            for start in range(0, count, PAIRS_PER_TASK):
                tasks.append(Chunk(scope, path, bases, start, min(start + PAIRS_PER_TASK, count)))
                names.append(f"{scope.name}-{start // PAIRS_PER_TASK:06d}")
        stage = self.stage("exact Jaccard", "jaccard", CheckPairs(), tasks, names)
        self._engine.run(stage)
        return [
            tuple(
                stage.folder / f"{name}{JACCARD}"
                for task, name in zip(tasks, names, strict=True)
                if task.scope is scope
            )
            for scope in scopes
        ]
