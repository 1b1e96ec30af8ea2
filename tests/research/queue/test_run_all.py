"""A list of runs to a table: reuse, sharing, failures; the worker is a fork, and once as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megatron_kaiyuan import platform
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue import run_all
from megatron_kaiyuan.research.queue.request import write_list
from tests.helpers.processes.rank_server import started
from tests.helpers.training.run_lists import STEPS, WORKER, make_run, make_runs, work
from tests.helpers.training.small_run import TOKENS_PER_STEP, events, succeed


def test_a_list_becomes_a_table_and_whole_runs_are_reused(queue_recipe: Path, tmp_path: Path) -> None:
    runs = make_runs(queue_recipe, 2)
    # Another name and other labels, the same run.
    runs.append(replace(runs[0], name="again", labels={"seed": None, "dataset": "edu"}))
    rows = run_all(tmp_path, runs, slots=2)
    assert [row["name"] for row in rows] == ["seed=0", "seed=1", "again"]
    assert (rows[0]["steps"], rows[0]["tokens"]) == (STEPS, STEPS * TOKENS_PER_STEP)
    measured = [(row["fingerprint"], row["bits_per_byte/code"], row["bits_per_byte/prose"]) for row in rows]
    assert measured[0] == measured[2] != measured[1]

    # Both forms hold the same rows, and a column that a row does not have is null.
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert lines == [
        {"name": row["name"], "seed": row.get("seed"), "dataset": row.get("dataset"), **row} for row in rows
    ]

    folders = sorted((tmp_path / "runs").iterdir())
    assert {folder.name for folder in folders} == {row["fingerprint"] for row in rows}
    assert all({path.name for path in folder.iterdir()} == WHOLE for folder in folders)
    kept = [(folder / "result.json").stat().st_mtime_ns for folder in folders]

    # Another list on the same folder: what is whole is not trained again, and the last list's table is written.
    more = work(tmp_path, [*runs[1:2], make_run(queue_recipe, "new", "train.seed=7")])
    assert "1 reused" in more["errors"] and more["rows"][0] == rows[1]
    assert [(folder / "result.json").stat().st_mtime_ns for folder in folders] == kept
    assert all(len(events(folder, "start")) == 1 for folder in folders)


WHOLE = {"result.json", "log.txt", "config.yaml", "metrics.jsonl", "events.jsonl", "lock"}


def test_the_table_holds_what_kaiyuan_train_export_and_eval_say(queue_recipe: Path, tmp_path: Path) -> None:
    run = make_run(queue_recipe, "only", "train.seed=3", "optimizer.weight_decay=0.0", steps=6)
    (row,) = work(tmp_path / "queue", [run])["rows"]
    succeed(1, queue_recipe, f"run_dir={tmp_path / 'train'}", *run.overrides)

    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.evaluate.heldout import held_out_loss, open_corpora
    from megatron_kaiyuan.evaluate.predictor import predictor_of_transformers
    from megatron_kaiyuan.export.loading import load_network
    from megatron_kaiyuan.export.run import export_checkpoint

    with single_process(device):
        export_checkpoint(tmp_path / "train" / "checkpoints" / "step_6", tmp_path / "exported", None)
    predictor = predictor_of_transformers(load_network(tmp_path / "exported"))
    corpora = open_corpora(list(run.held_out.values()))
    found = held_out_loss(predictor, corpora, seq_length=64)["domains"]
    for domain, prefix in run.held_out.items():
        assert row[f"bits_per_byte/{domain}"] == pytest.approx(found[domain]["bits_per_byte"], rel=1e-6)
        # By its definition; each document of these corpora says that it has one byte.
        corpus = IndexedCorpus(prefix)
        bits = found[domain]["nats_per_token"] / 0.6931471805599453 * corpus.lengths.sum() / len(corpus)
        assert found[domain]["bits_per_byte"] == pytest.approx(bits)


def test_two_queues_on_one_folder_share_the_work(queue_recipe: Path, tmp_path: Path) -> None:
    runs = make_runs(queue_recipe, 5)
    path = write_list(tmp_path, runs)
    with started(1, [*WORKER, path, "--slots", 1]) as one, started(1, [*WORKER, path, "--slots", 1]) as other:
        assert (one.wait(200), other.wait(200)) == (0, 0)
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == len(runs)
    # Every run was begun once, by one of the two.
    assert all(len(events(folder, "start")) == 1 and not events(folder, "resume") for folder in folders)
    whole = work(tmp_path, runs, "--slots", 0)
    assert (len(whole["rows"]), whole["missing"], whole["code"]) == (5, [], 0)


def test_a_run_that_fails_is_told_and_stops_no_other(queue_recipe: Path, tmp_path: Path) -> None:
    bad = make_run(queue_recipe, "too long", "train.train_tokens=1_000_000_000")
    done = work(tmp_path, [bad, *make_runs(queue_recipe, 1)], "--slots", 1)
    assert done["code"] == 2 and [row["name"] for row in done["rows"]] == ["seed=0"]
    assert "1,000,000,000 asked for" in done["failed"]["too long"] and "log.txt" in done["failed"]["too long"]
    assert "run 'too long' failed" in done["errors"]
    # The same command tries it again; as a function it is an error that names the run.
    with pytest.raises(UserError, match="1 of 2 runs failed, such as 'too long': exit code 2"):
        run_all(tmp_path, [bad, *make_runs(queue_recipe, 1)])


def test_nothing_is_begun_where_a_run_cannot_be(queue_recipe: Path, tmp_path: Path) -> None:
    for override, message in [
        ("train.sed=1", "run 'bad': .*train.sed: unknown field"),
        ("parallel.tensor_model_parallel_size=2", "run 'bad': 1 processes cannot be cut into groups of 2"),
        ("platform=npu", "for platforms cpu and npu"),
    ]:
        done = work(tmp_path, [*make_runs(queue_recipe, 1), make_run(queue_recipe, "bad", override)])
        assert done["code"] == 2 and not (tmp_path / "runs").exists()
        with pytest.raises(UserError, match=message):
            raise UserError(done["error"])
    runs = make_runs(queue_recipe, 1)
    for wrong, message in [
        ([], "there is no run"),
        (runs * 2, "two runs are called 'seed=0'"),
        ([replace(runs[0], labels={"steps": 1})], "label 'steps' is a column"),
        ([replace(runs[0], overrides=("run_dir=here",))], "run_dir is chosen by the queue"),
    ]:
        with pytest.raises(UserError, match=message):
            run_all(tmp_path, wrong)


def test_a_corpus_without_bytes_is_refused(queue_recipe: Path, tmp_path: Path) -> None:
    run = make_runs(queue_recipe, 1)[0]
    source = run.held_out["code"]
    for suffix in (".bin", ".idx"):
        (tmp_path / f"stock{suffix}").write_bytes(source.with_name(f"code{suffix}").read_bytes())
    done = work(tmp_path / "queue", [replace(run, held_out={"stock": tmp_path / "stock"})])
    assert "has no .meta.parquet" in done["failed"]["seed=0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_waits_until_its_runs_are_saved(
    number: signal.Signals, queue_recipe: Path, tmp_path: Path
) -> None:
    """The process that called `run_all` gets the signal alone."""
    # A run of forty steps may end before the signal comes, on a busy machine.
    assert any(stopped_at_work(number, queue_recipe, tmp_path / str(attempt)) for attempt in range(5))


def stopped_at_work(number: signal.Signals, queue_recipe: Path, place: Path) -> bool:
    """Send the signal while a run is at work; whether the run was in the midst of it."""
    runs = make_runs(queue_recipe, 2, "checkpoint.save_every_steps=1000", steps=40)
    path = write_list(place, runs)
    code = (
        "import sys; from pathlib import Path\n"
        "from megatron_kaiyuan.research.queue import request, run_all\n"
        "try: run_all(Path(sys.argv[1]), request.read_list(Path(sys.argv[2])), slots=1)\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "KAIYUAN_PARENT"}
    command = [sys.executable, "-c", code, str(place), str(path)]
    with subprocess.Popen(command, env=environ, start_new_session=True, stderr=subprocess.DEVNULL) as caller:
        deadline = time.monotonic() + 200
        while not any('"loss"' in file.read_text() for file in (place / "runs").glob("*/metrics.jsonl")):
            assert time.monotonic() < deadline and caller.poll() is None
            time.sleep(0.02)
        caller.send_signal(number)
        # 0 where all runs had ended by then.
        assert caller.wait(100) in (0, 128 + number)
    stops = {file.parent: events(file.parent, "stop") for file in (place / "runs").glob("[!.]*/metrics.jsonl")}
    at_work = [(folder, stop["step"]) for folder, found in stops.items() for stop in found]
    assert all((folder / "latest").read_text().strip() == f"step_{step}" for folder, step in at_work)
    return any(step for _, step in at_work)
