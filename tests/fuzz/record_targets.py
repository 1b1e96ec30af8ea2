"""Records that commands leave for themselves: lists, results, indexes, journals; and what `report` reads of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_json, write_sealed_json
from megatron_kaiyuan.outputs import Output, recorded_folder, write_record
from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.small_corpora import write_corpus

_SUM = f"xxh3:{0:032x}"


def _written(name: str, content: dict[str, Any], *beside: str) -> Callable[[Path], Path]:
    """A sealed file of this content, and empty files beside it."""

    def make(folder: Path) -> Path:
        (folder / "made").mkdir()
        for other in beside:
            (folder / "made" / other).write_bytes(b"")
        write_sealed_json(folder / "made" / name, content)
        return folder / "made" / name

    return make


def _documents(folder: Path) -> Path:
    from data_tools.steps.folder import FORMAT

    (folder / "made" / "documents").mkdir(parents=True)
    (folder / "made" / "documents" / "a.parquet").write_bytes(b"abc")
    datasets = {"web": {"files": ["a.jsonl"], "rows": 3, "documents": 2, "dropped": {"short": 1}}}
    write_record(folder / "made", FORMAT, "identity", datasets=datasets)
    return folder / "made" / "manifest.json"


def _read_documents(path: Path) -> Any:
    from data_tools.steps.folder import FORMAT, read_documents_manifest, summary
    from data_tools.steps.verify import verify_documents

    recorded_folder(FORMAT)(Output(path.parent, "documents"))
    verify_documents(path.parent)
    summary(read_documents_manifest(path.parent))


def _index(folder: Path) -> Path:
    from data_tools.dedup.index import FORMAT
    from data_tools.dedup.signing import SUFFIXES

    (folder / "made").mkdir()
    for suffix in SUFFIXES:
        (folder / "made" / f"00000-000000{suffix}").write_bytes(b"\0" * 8)
    file = {"name": "/data/a.jsonl", "format": "json", "packing": "", "size": 9, "version": "1"}
    row = {"dataset": 0, "number": 0, "name": "web", "file": file, "task": {"start": 0, "stop": 9, "name": "a-0"}}
    reading = {"json_keys": ["text"], "text_column": None, "text_documents": "line", "max_characters": 0}
    rows = [{**row, "documents": 1, "signed": 1, "hashed": 1}]
    write_record(folder / "made", FORMAT, "i", recipe=_sign().identity(), reading=reading, shards=rows)
    return folder / "made" / "manifest.json"


def _sign() -> Any:
    from data_tools.dedup.signatures import Recipe
    from data_tools.dedup.signing import Sign
    from data_tools.reading.tasks import Settings

    return Sign(Settings(Path()), Recipe())


def _open_index(path: Path) -> Any:
    from data_tools.dedup.index import open_indexes

    open_indexes([path.parent], _sign())


def _list(path: Path) -> Any:
    from megatron_kaiyuan.research.queue.request import read_list

    read_list(path)


def _result(path: Path) -> Any:
    from megatron_kaiyuan.research.queue.request import Run
    from megatron_kaiyuan.research.queue.table import write_table
    from megatron_kaiyuan.research.queue.task import ReadyRun, row_of

    run = Run("one", Path("recipe.yaml"), labels={"seed": 1})
    task = ReadyRun(run, "cpu", "f", None, path.parent)  # type: ignore[arg-type]
    if (result := task.result()) is not None:
        write_table(path.parent, [row_of(task, result)])


def _windows(path: Path) -> Any:
    from megatron_kaiyuan.research.probes.parts import read_windows

    for window in read_windows(path):
        assert window.parts[0].is_relative_to(path.parent)
        json.dumps(window.portrait)


def _earlier(
    module: str, name: str = "_earlier", place: Callable[[Path], Output] | None = None
) -> Callable[[Path], Any]:
    """How a command recognises its own earlier product."""

    def read(path: Path) -> Any:
        import importlib

        recognise = getattr(importlib.import_module(module), name)
        recognise(place(path) if place else Output(path.parent, "a product"))

    return read


def _materialized(path: Path) -> Output:
    prefix = path.with_name(path.name.removesuffix(".phase.json"))
    return Output(prefix, "a phase", kind="prefix", files=(path,))


def _classifier(path: Path) -> Output:
    return Output(path.with_name("model.bin"), "a classifier", kind="file", files=(path.with_name("model.bin"), path))


def _trained(path: Path) -> Output:
    names = ("tokenizer_config.json", "tokenizer.json", path.name)
    return Output(path.with_name("tokenizer.json"), "a", kind="file", files=tuple(path.with_name(n) for n in names))


def _acceptance(path: Path) -> Any:
    from megatron_kaiyuan.doctor.acceptance.record import AcceptanceRecord, _earlier

    _earlier("i")(Output(path.parent, "a record"))
    record = AcceptanceRecord(path.parent, "i", "cpu")
    for result in record.passed().values():
        json.dumps(result.as_json()), result.line


def _journal(folder: Path) -> Path:
    (folder / "made").mkdir()
    (folder / "made" / "new").write_bytes(b"new")
    path = folder / "made" / "x.publishing.json"
    write_sealed_json(path, {"publish": [["new", "final", "old"], ["new2", "final2", "old2"]]})
    return path


def _settle(path: Path) -> Any:
    from megatron_kaiyuan.files import settle

    (path.parent / "new").write_bytes(b"new")
    whole = path.read_bytes()
    try:
        settle(path)
    finally:
        path.write_bytes(whole)
    outside = [other for other in path.parent.parent.iterdir() if other != path.parent]
    return None if not outside else f"wrote {outside}"


def _metrics(folder: Path) -> Path:
    from tests.helpers.training.sample_run import write_metrics

    write_metrics(folder / "run")
    path = folder / "run" / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    monitored = [line for line in lines if '"monitor"' in line][-3:]
    # Older versions wrote NaN, which JSON does not allow.
    of_old = json.dumps({**json.loads(lines[-4]), "loss": math.nan})
    path.write_text("\n".join([*lines[:9], *monitored, of_old, *lines[-3:]]))
    return path


def _history(path: Path) -> Any:
    from megatron_kaiyuan.report.build import _tiles
    from megatron_kaiyuan.report.environment import cost_rows, environment_rows, implementation_rows, total_cost
    from megatron_kaiyuan.report.happened import happenings, samples_of
    from megatron_kaiyuan.report.metrics import read_history

    history = read_history(path)
    history.column("loss"), history.tokens_at(3), history.restarts
    _tiles(history, None, None)
    happenings(history), samples_of(history)
    environment_rows(history), implementation_rows(history), cost_rows(history, None), total_cost(history, None)
    seen = history.monitored
    [seen.headroom(name) for name in seen.tensors]
    [seen.updates(kind) for kind in seen.kinds]


def _status(path: Path) -> Any:
    from megatron_kaiyuan.report.status import read_status

    return None if read_status(path.parent).lines() else "no line"


def _evaluation(folder: Path) -> Path:
    from megatron_kaiyuan.evaluate.run import RESULT
    from tests.helpers.training.sample_run import evaluation

    (folder / "run").mkdir()
    write_json(folder / "run" / RESULT, evaluation())
    return folder / "run" / RESULT


def _read_evaluation(path: Path) -> Any:
    from megatron_kaiyuan.report.evaluation import held_out_rows, read_evaluation, references, task_rows

    missing: list[str] = []
    found = read_evaluation(path.parent, missing)
    held_out_rows(found), references(found), task_rows(found)
    if missing:
        raise UserError(missing[0])


def _compared_evaluation(path: Path) -> Any:
    from megatron_kaiyuan.compare.evaluation import read_evaluation, scores

    notes: list[str] = []
    list(scores(read_evaluation(path.parent, notes)))
    if notes:
        raise UserError(notes[0])


def _left_out(path: Path) -> Any:
    from megatron_kaiyuan.train.hooks.left_out import _read

    _read(path, is_new=False)


_WINDOW = {
    **{"name": "edu_0", "dataset": "edu", "asked": [0.0, 0.1], "bounds": [0, 0.1], "documents": 3, "tokens": 9},
    **{"phase": "edu_0", "phase_documents": 3, "phase_tokens": 9, "repeat": 1.0, "portrait": {"words": 3, "x": [1]}},
}
_RUN = {
    **{"name": "a", "recipe": "r.yaml", "overrides": ["train.seed=1"], "labels": {"seed": 1, "of": None}},
    **{"held_out": {"web": "h/web"}, "held_out_tokens": 100, "tasks": {"t": "t.json"}, "tokenizer": "tok"},
}
_REACHED = {
    **{"fingerprint": "f", "steps": 3, "tokens": 9, "parameters": 7},
    **{"seconds": 1.5, "training_seconds": 1.0, "bits_per_byte": {"web": 1.25}},
}
_CHECK = {"number": 1, "name": "devices", "title": "t", "state": "ok", "figure": "1", "seconds": 1.0, "facts": {"a": 1}}
_LEFT = [{"action": "skip", "step": 3, "tokens": [1, 5], "reason": "loss", "overflow": False}]


def _sealed(name: str, make: Callable[[Path], Path], read: Callable[[Path], Any]) -> Target:
    return Target(f"record-{name}", make, json_damage.sealed, [read])


def _left_out_file(folder: Path) -> Path:
    (folder / "run").mkdir()
    write_json(folder / "run" / "left_out.json", _LEFT)
    return folder / "run" / "left_out.json"


def _named(name: str, format_module: str, content: dict[str, Any], constant: str = "_FORMAT") -> Callable[[Path], Path]:
    """A record whose format is a constant of the module that reads it."""

    def make(folder: Path) -> Path:
        import importlib

        found = getattr(importlib.import_module(format_module), constant)
        return _written(name, {"format": found, "version": 1, **content})(folder)

    return make


def _cloze(folder: Path) -> Path:
    from megatron_kaiyuan.evaluate.cloze import ClozeTask, Item, write_task

    return write_task(ClozeTask("arc", (Item("The sky is", " blue"), Item("", " x"))), folder / "made")


def _read_cloze(path: Path) -> Any:
    from megatron_kaiyuan.evaluate.cloze import read_task

    assert read_task(path).identity


def _report(folder: Path) -> Path:
    (folder / "made").mkdir()
    counts = {"documents": 3, "exact": 1, "near": 0, "quarantined": 0, "removed": 1, "removed_share": 0.333333}
    side = {"id": 1, "text": "a b"}
    content = {
        **{"datasets": {"web": counts}, "bad_rows": 1, "clusters": {"web": {"2": 1}}},
        "quarantined_clusters": [{"scope": "web", "documents": 3, "cluster": 7}],
        "pairs": [{"jaccard": 0.9, "dataset": "web", "removed": side, "stays": side}],
    }
    write_sealed_json(folder / "made" / "report.json", content)
    return folder / "made" / "report.json"


def _read_report(path: Path) -> Any:
    from data_tools.dedup.deduplicate import Request, _finished_report
    from data_tools.dedup.report import report_lines

    report_lines(_finished_report(Request(("a.jsonl",), path.parent)))


def _shard_files(name: str) -> Callable[[Path], Path]:
    """A finished shard of `preprocess`, with its bad row, and the note that all are joined."""

    def make(folder: Path) -> Path:
        from data_tools.preprocessing.joining import _JOINED, _fingerprint

        prefix, (group, shards) = folder / "made" / "web", _shard(folder / "made")
        write_corpus(prefix, [[1, 2]])
        write_corpus(shards.corpora(group)[0], [[1, 2]])
        counts = {"rows": 2, "sequences": 1, "tokens": 2, "text_bytes": 9, "skipped": {"not JSON": 1}, "bad_rows": 1}
        record = {**counts, "missing_scores": {"s": 1}, "held_out": 0, "held_out_tokens": 0}
        write_sealed_json(shards.record_path(group), record)
        bad = {"task": 0, "row": 1, "offset": 4, "reason": "not JSON"}
        shards.bad_rows_path(group).write_text(json.dumps(bad) + "\n")
        write_sealed_json(shards.folders[0] / _JOINED, {"work": _fingerprint([group]), "records": [record]})
        return shards.folders[0] / name

    return make


def _shard(folder: Path) -> tuple[Any, Any]:
    from data_tools.preprocessing.shards import Shards
    from data_tools.reading.inputs import InputFile
    from data_tools.reading.tasks import Task, TaskGroup

    file = InputFile("a.jsonl", "json", "", 9, "1", location="a.jsonl")
    return TaskGroup((Task(file, 0, 9, "0" * 32),), "0" * 32), Shards([folder / "web"])


def _read_shard(path: Path) -> Any:
    from data_tools.corpora.corpus_files import read_manifest
    from data_tools.preprocessing.joining import _write_bad_rows, joined_earlier

    group, shards = _shard(path.parent.parent)
    prefix = path.parent.parent / "web"
    joined = joined_earlier(shards, {prefix: read_manifest(prefix).get("identity")}, [group])
    record = shards.finished(group)
    if joined is None or record is None:
        raise UserError(f"{path}: is made again")
    for one in (record, *joined):
        assert one.tokens >= 0 and sum(one.skipped.values()) >= 0 and sum(one.missing_scores.values()) >= 0
    _write_bad_rows(shards, [(group, record)], path.parent.parent / "bad_rows.jsonl")


def _task_file(folder: Path) -> Path:
    (folder / "made").mkdir()
    (folder / "made" / "a.parquet").write_bytes(b"abc")
    write_sealed_json(folder / "made" / "a.task.json", {"files": {"a.parquet": 3}, "record": {"rows": 3}})
    return folder / "made" / "a.task.json"


def _read_task(path: Path) -> Any:
    from data_tools.engines.stage import Stage

    record = Stage("t", path.parent, lambda task, target: {}, [0], ["a"]).finished(0)
    if record is None:
        raise UserError(f"{path}: is made again")
    assert isinstance(record, dict)


_MIXTURE, _ORDER = "megatron_kaiyuan.research.mixture.command", "data_tools.curriculum.materialize"
_LINEAR, _TOKENIZER = "data_tools.scores.training", "data_tools.tokenizers.train_tokenizer"
_ACCEPTANCE = "megatron_kaiyuan.doctor.acceptance.record"
_LISTS, _RESULTS = "megatron_kaiyuan.research.queue.request", "megatron_kaiyuan.research.queue.task"

TARGETS = (
    _sealed("documents", _documents, _read_documents),
    _sealed("dedup", _index, _open_index),
    _sealed(
        "windows", _named("windows.json", "megatron_kaiyuan.research.probes.parts", {"windows": [_WINDOW]}), _windows
    ),
    _sealed("runs", _named("list.json", _LISTS, {"runs": [_RUN]}, "FORMAT"), _list),
    _sealed("result", _named("result.json", _RESULTS, {**_REACHED}, "FORMAT"), _result),
    _sealed("mixture", _named("study.json", _MIXTURE, {"identity": "i"}, "FORMAT"), _earlier(_MIXTURE)),
    _sealed("materialized", _named("x.phase.json", _ORDER, {"identity": "i"}), _earlier(_ORDER, place=_materialized)),
    _sealed(
        "classifier",
        _named("model.bin.json", _LINEAR, {"identity": "i", "file": {"bytes": 3, "checksum": _SUM}}),
        _earlier(_LINEAR, place=_classifier),
    ),
    _sealed(
        "trained-tokenizer",
        _named("tokenizer.manifest.json", _TOKENIZER, {"identity": "i", "files": {"tokenizer.json": _SUM}}),
        _earlier(_TOKENIZER, place=_trained),
    ),
    _sealed("acceptance", _named("acceptance.json", _ACCEPTANCE, {"identity": "i", "checks": [_CHECK]}), _acceptance),
    _sealed("journal", _journal, _settle),
    _sealed("cloze", _cloze, _read_cloze),
    _sealed("report", _report, _read_report),
    _sealed("shard", _shard_files("0" * 32 + ".task.json"), _read_shard),
    _sealed("joined", _shard_files("joined.json"), _read_shard),
    Target("record-shard-bad-rows", _shard_files("0" * 32 + ".bad_rows.jsonl"), json_damage.rows, [_read_shard]),
    _sealed("task", _task_file, _read_task),
    Target("record-metrics", _metrics, json_damage.rows, [_history, _status], lenient=True),
    Target("record-evaluation", _evaluation, json_damage.plain, [_read_evaluation, _compared_evaluation]),
    Target("record-left-out", _left_out_file, json_damage.plain, [_left_out]),
)
