"""`kaiyuan-data dedup`: the stages in their order, each done by any engine with the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_tools.dedup import index as indexes
from data_tools.dedup.clusters import MEMBERS, Edges, FindClusters
from data_tools.dedup.edges import EdgeFinder
from data_tools.dedup.keepers import DECISIONS, MEMBERS_PER_TASK, Choose, ClusterBatch
from data_tools.dedup.report import ReportForm, make_report, refuse_wipe_out
from data_tools.dedup.request import Request
from data_tools.dedup.samples import ReadSamples, describe_samples, pick_samples, sample_tasks
from data_tools.dedup.scopes import Scope, SignedShard, make_scopes
from data_tools.dedup.signing import Sign
from data_tools.dedup.writing import WriteColumns, WriteDocuments, by_dataset
from data_tools.engines.stage import Engine, Record, Stage
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings
from data_tools.steps.datasets import datasets_identity, find_datasets
from data_tools.steps.folder import Workplace, publish_documents, refuse_bad_rows, refuse_empty, stage_of, workplace
from data_tools.steps.schemas import one_schema
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import require_form
from megatron_kaiyuan.outputs import identity_of

REPORT = "report.json"
# Goes up when the same input and settings give another result.
VERSION = 1


def deduplicate(request: Request, settings: Settings, engine: Engine) -> dict[str, Any]:
    """Do all of it, or what an earlier run has left to do; return the report.

    Raises:
        UserError: the input cannot be read, a guard stops the run, or a place cannot be written.
    """
    sign = Sign(settings, request.recipe, request.score, request.exact_only, request.max_bad_rows)
    earlier, seals = indexes.open_indexes(request.against, sign)
    datasets = find_datasets(request.inputs, settings, request.task_bytes, quiet=not engine.is_first)
    if engine.is_first and not request.rules.across:
        indexes.warn_of_other_names(earlier, [dataset.name for dataset in datasets])
    # --max-removed and --max-bad-rows can stop a run but do not change its result, so they are left out here.
    signing = identity_of(datasets_identity(datasets), sign.identity())
    compared = [asdict(request.recipe), request.exact_only, request.rules.across, seals]
    comparing = identity_of("dedup", VERSION, signing, compared)
    identity = identity_of(comparing, asdict(request.rules), request.columns)
    shards = [shard for dataset in datasets for shard in dataset.shards]
    with ExitStack() as stack:
        place = stack.enter_context(workplace(request.output, "dedup", identity, shards, engine, force=request.force))
        stack.enter_context(indexes.claim_index(request.index, signing, engine, request.force))
        has_index = request.index is None or indexes.is_there(request.index, signing)
        if place.manifest and has_index:
            return _finished_report(request)
        run = _Run(request, engine, place, signing, comparing)
        signed = run.sign(sign, shards)
        if request.index and not has_index and engine.is_first:
            indexes.publish(request.index, signing, sign, signed)
        if place.manifest:
            if engine.is_first:
                place.remove()
            return _finished_report(request)
        scopes = make_scopes([*earlier, *signed], request.rules.across)
        return run.finish(scopes, shards, settings)


class _Run:
    """The stages of one run. Each stage's folder is named by all that its files depend on."""

    def __init__(self, request: Request, engine: Engine, place: Workplace, signing: str, comparing: str):
        self._request, self._engine, self._place = request, engine, place
        self._bad_rows = 0
        root = place.folder.parent
        self._signing = root / f"sign-{signing[:16]}"
        self._finder = EdgeFinder(request, engine, root / f"pairs-{comparing[:16]}")

    def sign(self, sign: Sign, shards: Sequence[Shard]) -> list[SignedShard]:
        """The shards of the input with their digests and band keys."""
        stage = replace(stage_of(self._place, "sign", sign, shards), folder=self._signing)
        records = self._engine.run(stage)
        refuse_bad_rows(shards, records, self._request.max_bad_rows)
        refuse_empty(shards, records)
        self._bad_rows = sum(len(record["bad"]) for record in records)
        self._require_scores(records)
        return [
            SignedShard(
                shard,
                sign.settings,
                str(stage.folder / name),
                record["documents"],
                record["signed"],
                record["hashed"],
                first_rows=tuple(record.get("first_rows", (0,))),
            )
            for shard, name, record in zip(shards, stage.names, records, strict=True)
        ]

    def finish(self, scopes: Sequence[Scope], shards: Sequence[Shard], settings: Settings) -> dict[str, Any]:
        """All that comes after the first stage; return the report."""
        edges = self._finder.find(scopes)
        choices, decisions = self._choose(edges)
        report = self._report(scopes, choices)
        path = self._place.folder / REPORT
        if self._engine.is_first:
            write_sealed_json(path, report)
        refuse_wipe_out(report, self._request.max_removed, path)
        decided = by_dataset(scopes, decisions)
        if self._request.columns:
            stage = stage_of(self._place, "write", WriteColumns(decided), shards)
        else:
            write = WriteDocuments(decided, settings, self._request.max_bad_rows)
            stage = stage_of(self._place, "write", write, shards)
        records = self._engine.run(stage)
        stage, records = one_schema(self._place, stage, records, self._engine)
        if self._engine.is_first:
            about = {"command": "dedup", "recipe": asdict(self._request.recipe), "rules": asdict(self._request.rules)}
            publish_documents(self._place, stage, records, about, [path])
        return report

    def _choose(self, edges: Sequence[Edges]) -> tuple[list[list[Record]], list[tuple[Path, ...]]]:
        """Records and files of the decisions of each scope."""
        stage = self._finder.stage("clusters", "clusters", FindClusters(), edges, [each.scope.name for each in edges])
        records = self._engine.run(stage)
        tasks = []
        for each, name, record in zip(edges, stage.names, records, strict=True):
            count = max(-(-record["members"] // MEMBERS_PER_TASK), 1)
            tasks += [ClusterBatch(each, stage.folder / f"{name}{MEMBERS}", number, count) for number in range(count)]
        names = [f"{task.edges.scope.name}-{task.number:06d}" for task in tasks]
        stage = Stage("keepers", self._place.folder / "keepers", Choose(self._request.rules), tasks, names)
        chosen = self._engine.run(stage)
        rows = list(zip(tasks, names, chosen, strict=True))
        return (
            [[record for task, _, record in rows if task.edges is each] for each in edges],
            [
                tuple(stage.folder / f"{name}{DECISIONS}" for task, name, _ in rows if task.edges is each)
                for each in edges
            ],
        )

    def _report(self, scopes: Sequence[Scope], choices: Sequence[Sequence[Record]]) -> dict[str, Any]:
        samples = pick_samples(scopes, choices)
        tasks = sample_tasks(samples)
        names = [Path(signed.base).name for signed, _ in tasks]
        stage = Stage("examples", self._place.folder / "samples", ReadSamples(self._request.recipe), tasks, names)
        records = self._engine.run(stage)
        return make_report(scopes, choices, describe_samples(samples, tasks, records), self._bad_rows)

    def _require_scores(self, records: Sequence[Record]) -> None:
        score = self._request.score
        if score is None or not any(record["documents"] for record in records):
            return
        if not any(record["scored"] for record in records):
            raise UserError(f"--score {score}: no document has this field as a number; name another one")


def _finished_report(request: Request) -> dict[str, Any]:
    path = request.output / REPORT
    report = read_sealed_json(path, "report")
    require_form(path, report, ReportForm, "make the folder again with --force")
    return {name: value for name, value in report.items() if name != "seal"}
