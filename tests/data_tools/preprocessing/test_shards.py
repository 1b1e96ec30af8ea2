"""Runs that are stopped, repeated, split over ranks or out of disk, on real processes."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from data_tools.corpora.corpus import manifest_path
from data_tools.corpora.merge import merge_corpora
from data_tools.corpora.verify import verify
from data_tools.engines.ranks import RanksEngine
from data_tools.preprocessing import joining
from data_tools.preprocessing.preprocess import Settings, Totals, preprocess
from data_tools.preprocessing.shards import RecordForm, ShardRecord
from data_tools.reading.place import Place
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.locks import lock
from tests.helpers.files.json_lines import read_rows, write_rows

ROOT = Path(__file__).parents[3]
TASK_BYTES = 3000
KEYS = ("text", "title")
FILES = [f"c_{key}_document{suffix}" for key in KEYS for suffix in (".bin", ".idx", ".meta.parquet", ".manifest.json")]
FILES.append("c.bad_rows.jsonl")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def source(harvested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files with two texts a row; some rows are bad, some texts empty."""
    folder = tmp_path_factory.mktemp("source")
    rows = [row for path in sorted(harvested.glob("*.heldout.jsonl")) for row in read_rows(path)]
    rows = [
        {**row, "text": row["text"][:800], "title": row["text"][:20] if i % 7 else ""} for i, row in enumerate(rows)
    ]
    rows = [row if i % 11 else {"text": None} for i, row in enumerate(rows * 2)]
    for part in range(2):
        write_rows(folder / f"{part}.jsonl", rows[part::2])
    return folder


@pytest.fixture(scope="module")
def settings(tokenizer_path: Path) -> Settings:
    return Settings(tokenizer_path, KEYS, ("score",), meta_keys=("title",), tokenizer_engine="reference")


@pytest.fixture(scope="module")
def settings_of_cli(settings: Settings) -> list[str]:
    line = ["--tokenizer-model", str(settings.tokenizer), "--json-keys", *KEYS, "--score-keys", "score"]
    line += ["--max-characters", "790", "--max-bad-rows", "1000", "--tokenizer-engine", "reference"]
    return [*line, "--task-bytes", str(TASK_BYTES)]


def run(source: Path, folder: Path, settings: Settings, **more) -> Totals:
    more = {"max_bad_rows": 1000, "task_bytes": TASK_BYTES, **more}
    return preprocess([source], folder / "c", settings, **more)


def contents(folder: Path) -> dict[str, bytes]:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def line(source: Path, settings_of_cli: list[str]) -> list[str]:
    return [sys.executable, "-m", "data_tools", "preprocess", "--input", str(source), *settings_of_cli]


@pytest.fixture(scope="module")
def undisturbed(line: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """What one run gives, and the seconds it needs from its first shard to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with start(line, folder) as process:
        wait_for_shards(folder, process)
        began = time.monotonic()
        assert process.wait(60) == 0
    return contents(folder), time.monotonic() - began


def start(line: list[str], folder: Path, **more) -> subprocess.Popen[str]:
    environ = {**os.environ, **more.pop("env", {})}
    line = [*line, "--output-prefix", str(folder / "c"), "--workers", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=environ, start_new_session=True, **pipes, **more)


def wait_for_shards(folder: Path, process: subprocess.Popen[str]) -> None:
    while not any(folder.glob("*.shards/*.bin*")) and process.poll() is None:
        time.sleep(0.005)


def kill_and_restart(line: list[str], folder: Path, seconds: float, whole_group: bool) -> dict[str, bytes]:
    with start(line, folder) as process:
        wait_for_shards(folder, process)
        time.sleep(seconds)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    # Whatever has its final name and a manifest is whole, also now.
    for path in folder.glob("**/*.manifest.json"):
        verify(path.with_name(path.name.removesuffix(".manifest.json")))
    with start(line, folder) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return contents(folder)


def killed(line: list[str], undisturbed: tuple[dict[str, bytes], float], folder: Path, times: int) -> None:
    choice = random.Random(times)
    for trial in range(times):
        at = folder / f"{trial}"
        at.mkdir()
        found = kill_and_restart(line, at, choice.uniform(0, undisturbed[1]), whole_group=bool(trial % 2))
        assert found == undisturbed[0], trial
        shutil.rmtree(at)


def test_kill_9_leaves_no_trace(line: list[str], undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    killed(line, undisturbed, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_fifty_times(line: list[str], undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    killed(line, undisturbed, tmp_path, 50)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_full_disk_is_one_line_and_no_half_file(
    line: list[str], undisturbed: tuple[dict[str, bytes], float], tmp_path: Path, share: float
) -> None:
    # Files of at most that size: a tenth stops a shard, nine tenths of the largest file stop the join.
    limit = int(share * max(len(content) for content in undisturbed[0].values()))
    limit = min(limit, 2000) if share < 0.5 else limit
    full = start(
        line,
        tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},  # the limit would cut it off, for every later process
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = full.communicate(timeout=60)
    assert full.returncode == 2
    assert errors.startswith("error: ")
    assert "cannot be written (File too large)" in errors
    assert errors.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.shards/*.task.json")}
    with start(line, tmp_path) as again:
        assert again.wait(60) == 0
    assert bool(shards) == (share > 0.5)
    assert contents(tmp_path) == undisturbed[0]


def test_any_task_size_gives_the_same(source: Path, settings: Settings, tmp_path: Path) -> None:
    found = []
    for task_bytes in (700, 5000, 0):
        folder = tmp_path / str(task_bytes)
        totals = run(source, folder, settings, task_bytes=task_bytes)
        found.append((contents(folder), totals.sequences, totals.tokens, totals.text_bytes, totals.skipped))
    assert found[0] == found[1] == found[2]
    assert set(found[0][4]) == {"empty text", "field 'text' is not text"}


def test_bad_rows_are_listed_with_their_places(source: Path, settings: Settings, tmp_path: Path) -> None:
    run(source, tmp_path, settings)
    bad = read_rows(tmp_path / "c.bad_rows.jsonl")
    wanted = []
    for path in sorted(source.iterdir()):
        offset = 0
        for number, content in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if json.loads(content)["text"] is None:
                place = {"file": str(path), "line": number, "offset": offset}
                wanted.append({**place, "reason": "field 'text' is not text"})
            offset += len(content)
    assert bad == wanted
    # The next run has none, and leaves no list of this one.
    clean = write_rows(tmp_path / "clean.jsonl", [{"text": "a", "title": "b", "score": 1}])
    preprocess([clean], tmp_path / "c", settings, force=True)
    assert not (tmp_path / "c.bad_rows.jsonl").exists()


def finish_shards(source: Path, folder: Path, settings: Settings) -> dict[Path, int]:
    """Leave all shards and join nothing; return the time of change of each record."""
    run(source, folder, settings, engine=RanksEngine(Place(1, 2)))
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.shards/*.task.json")}


def test_finished_shards_are_not_done_again(source: Path, settings: Settings, tmp_path: Path) -> None:
    run(source, tmp_path / "whole", settings)
    own = shutil.copytree(source, tmp_path / "own")
    folder = tmp_path / "out"
    finished = finish_shards(own, folder, settings)
    assert len(finished) > 10

    def redone() -> int:
        after = {path: path.stat().st_mtime_ns for path in folder.glob("*.shards/*.task.json")}
        changed = sum(finished.get(path) != time for path, time in after.items())
        finished.update(after)
        return changed

    finish_shards(own, folder, settings)
    assert redone() == 0
    next(folder.glob("c_title_document.shards/*.idx")).unlink()
    finish_shards(own, folder, settings)
    assert redone() == 1
    tasks = -(-(own / "1.jsonl").stat().st_size // TASK_BYTES)
    os.utime(own / "1.jsonl", ns=(1, 1))
    finish_shards(own, folder, settings)
    assert redone() == tasks
    # What belongs to no task of the run that joins them goes with the rest.
    run(own, folder, settings)
    names = {name for name in FILES if name.endswith((".bin", ".idx"))}
    assert {name: contents(folder)[name] for name in names} == {
        name: contents(tmp_path / "whole")[name] for name in names
    }


def test_a_run_that_was_killed_while_it_removed_its_shards(
    source: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_half_way(shards: object) -> None:
        for path in sorted(tmp_path.glob("*.shards/*"))[:20]:
            if path.name != "joined.json":
                path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_tools.preprocessing.preprocess.remove", killed_half_way)
        run(source, tmp_path, settings)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in FILES}
    totals = run(source, tmp_path, settings)
    assert totals.sequences > 0
    assert totals.tokenizer_engine == ""
    assert contents(tmp_path)
    assert times == {name: (tmp_path / name).stat().st_mtime_ns for name in FILES}


def test_another_corpus_has_taken_the_place_since_a_run_was_killed_while_it_removed_its_shards(
    source: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(shards: object) -> None:
        raise KeyboardInterrupt

    run(source, tmp_path / "whole", settings)
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_tools.preprocessing.preprocess.remove", killed)
        run(source, folder, settings)
    merge_corpora([folder / "c_title_document"], folder / "c_text_document", force=True)
    run(source, folder, settings, force=True)
    assert contents(folder) == contents(tmp_path / "whole")


def test_the_limit_of_bad_rows_holds_over_all_tasks_and_ranks(source: Path, settings: Settings, tmp_path: Path) -> None:
    bad = run(source, tmp_path / "all", settings).skipped["field 'text' is not text"]
    with pytest.raises(UserError, match=rf"\.jsonl:\d+: field 'text' is not text \({bad} bad rows so far"):
        run(source, tmp_path / "c", settings, max_bad_rows=bad - 1)
    run(source, tmp_path / "c", settings, max_bad_rows=bad)
    assert contents(tmp_path / "c") == contents(tmp_path / "all")
    run(source, tmp_path / "ranks", settings, engine=RanksEngine(Place(1, 2)))
    for rank, merge_only in ((1, False), (0, False), (0, True)):
        with pytest.raises(UserError, match=f"--max-bad-rows is {bad - 1}"):
            engine = RanksEngine(Place(rank, 2))
            run(source, tmp_path / "ranks", settings, engine=engine, max_bad_rows=bad - 1, merge_only=merge_only)


def test_merge_only_says_what_is_missing(source: Path, settings: Settings, tmp_path: Path) -> None:
    finish_shards(source, tmp_path, settings)
    next(tmp_path.glob("*.shards/*.task.json")).unlink()
    with pytest.raises(UserError, match=r"--merge-only: \d+ of \d+ shards are not finished, the first is of .*\.jsonl"):
        run(source, tmp_path, settings, merge_only=True)


@pytest.mark.parametrize("launcher", ["slurm array", "mpirun"])
def test_ranks_give_what_one_process_gives(
    line: list[str], undisturbed: tuple[dict[str, bytes], float], tmp_path: Path, launcher: str
) -> None:
    if launcher == "mpirun":
        ranks = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-m", "mpi4py"]
        processes = [start([*ranks, *line[1:]], tmp_path)]
    else:
        array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1"}
        ids = [{**array, "SLURM_ARRAY_TASK_ID": str(i)} for i in (1, 2)]
        processes = [start(line, tmp_path, env=env) for env in ids]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        # One that comes when all is done finds the corpora.
        assert "; the first rank joins the shards" in output or ", made before" in output or "c_text_document" in output
    assert contents(tmp_path) == undisturbed[0]


def test_elements_of_an_array_that_do_not_run_at_once(
    line: list[str], undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    def element(number: int, *more: str) -> str:
        environ = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_ID": str(number)}
        with start([*line, *more], tmp_path, env=environ) as process:
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return output

    assert "; the first rank joins the shards, or --merge-only" in element(1)
    assert not any(tmp_path.glob("*.manifest.json"))
    element(0, "--merge-only")
    assert contents(tmp_path) == undisturbed[0]
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in FILES}
    assert ", made before" in element(2)
    assert ", made before" in element(0)
    assert contents(tmp_path) == undisturbed[0]
    assert times == {name: (tmp_path / name).stat().st_mtime_ns for name in FILES}


def test_two_runs_of_one_corpus_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "c.shards/run.lock"
    with lock(path), pytest.raises(UserError, match="another process is at work there"), lock(path, seconds=0.01):
        pass
    with lock(path, shared=True), lock(path, shared=True, seconds=0.01):
        pass
    order = []
    with lock(path):
        waiting = threading.Thread(target=lambda: order.extend(_hold(path)))
        waiting.start()
        time.sleep(0.2)
        order.append("first")
        # The first holder removes the folder, as a run does at its end.
        shutil.rmtree(path.parent)
    waiting.join()
    assert order == ["first", "second"]
    assert path.exists()


def _hold(path: Path) -> list[str]:
    with lock(path):
        return ["second"]


def test_no_manifest_outlives_its_files(source: Path, settings: Settings, tmp_path: Path) -> None:
    finish_shards(source, tmp_path, settings)
    folder = tmp_path / "c_text_document.shards"
    (folder / "joined.json").touch()
    names = [path.name for path in sorted(folder.iterdir(), key=joining._turn)]
    manifests = [name.endswith(".manifest.json") for name in names]
    assert any(manifests)
    assert manifests == sorted(manifests, reverse=True)
    assert names[-1] == "joined.json"


def test_nothing_but_shards_is_removed(tmp_path: Path) -> None:
    assert joining.remove.__doc__
    (tmp_path / "c_text_document.shards/progress").mkdir(parents=True)
    (tmp_path / "c_text_document.shards/progress/0-1").touch()
    manifest_path(tmp_path / "other").write_text("{}")
    joining.remove(joining.Shards([tmp_path / "c_text_document"]))
    assert [path.name for path in tmp_path.iterdir()] == ["other.manifest.json"]


def test_the_form_of_a_record_has_each_of_its_fields() -> None:
    assert set(RecordForm.model_fields) == {field.name for field in fields(ShardRecord)}
