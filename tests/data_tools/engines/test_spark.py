"""Spark: the bytes of the local engine with any number of partitions, kills, and each failure as one line.

All cases run in one Spark application (spark_cases.py); its last one is killed with the driver.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from data_tools.engines.local import LocalEngine
from tests.helpers.files.small_steps import digest, run, write_documents

ROOT = Path(__file__).parents[3]
PARTITIONS = (1, 3, 17)
# Commands that give the same bytes on every engine; {output} is a folder of their own, the rest what `places` names.
COMMANDS = {
    "preprocess": "preprocess --input {harvested}/*.train.jsonl --score-keys score --output-prefix {output}/c "
    "--tokenizer-model {tokenizer} --task-bytes 15000",
    "score": "score --input code={harvested}/code.train.jsonl math={harvested}/math.train.jsonl --scorer rules "
    "--quantile score --task-bytes 15000 --output {output}/scored",
    "dedup": "dedup --input code={harvested}/code.train.jsonl math={harvested}/math.train.jsonl --across "
    "--score score --max-removed 1 --task-bytes 15000 --output {output}/unique",
}

pytestmark = [pytest.mark.spark, pytest.mark.timeout(1200)]


class Cases(NamedTuple):
    """What the Spark application has left.

    Attributes:
        results: of the cases, by name.
        folder: with their outputs.
        errors: what was on the screen.
        left: processes of it that still ran some seconds after the driver was killed.
    """

    results: dict[str, Any]
    folder: Path
    errors: str
    left: list[psutil.Process]


def require_java(request: pytest.FixtureRequest) -> None:
    home = os.environ.get("JAVA_HOME")
    if shutil.which(f"{home}/bin/java" if home else "java"):
        return
    reason = "there is no Java: install Java 17 (Debian: openjdk-17-jre-headless), or set JAVA_HOME"
    if "spark" in request.config.option.markexpr:
        pytest.fail(reason)
    pytest.skip(reason)


def words_of(folder: Path) -> list[str]:
    return [f"web={folder / 'a.jsonl'}", f"wiki={folder / 'b.jsonl'}"]


@pytest.fixture(scope="session")
def cases(
    request: pytest.FixtureRequest, harvested: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Cases:
    require_java(request)
    folder = tmp_path_factory.mktemp("spark")
    write_documents(folder / "a.jsonl", 1500, seed=1)
    write_documents(folder / "b.jsonl", 700, seed=2)
    (folder / "bad.jsonl").write_text('{"text": "good"}\n' * 50 + "no JSON\n")
    words = words_of(folder)
    run(words, folder / "local/steps", LocalEngine(1))
    places = {"harvested": harvested, "tokenizer": tokenizer_path, "folder": folder}
    lines = {name: line.format(output="{output}", **places).split() for name, line in COMMANDS.items()}
    for name, line in lines.items():
        subprocess.run(
            [sys.executable, "-m", "data_tools", *(word.format(output=folder / "local" / name) for word in line)],
            cwd=ROOT,
            check=True,
        )
    wanted: dict[str, list[Any]] = {}
    for partitions in PARTITIONS:
        wanted[f"steps {partitions}"] = ["steps", partitions, words, str(folder / str(partitions) / "steps")]
        for name, line in lines.items():
            words_of_line = [word.format(output=folder / str(partitions) / name) for word in line]
            wanted[f"{name} {partitions}"] = ["command", partitions, words_of_line]
    bad = ["preprocess", "--input", str(folder / "bad.jsonl"), "--tokenizer-model", str(tokenizer_path)]
    wanted["bad row"] = ["command", 3, [*bad, "--output-prefix", str(folder / "bad/c")]]
    wanted["killed workers"] = ["steps_with_killed_workers", words, str(folder / "killed"), 5]
    for kinds in (["good", "mistake"], ["dies"], ["defect"]):
        wanted[" ".join(kinds)] = ["misbehave", str(folder / "stages" / kinds[-1]), kinds]
    wanted["twice"] = ["task_twice_at_once", str(folder / "stages/twice")]
    wanted["unseen"] = ["folder_unseen", str(folder / "stages/unseen")]
    # Never ends by itself in the time that the test gives it.
    last = ["steps_with_killed_workers", words, str(folder / "driver"), 6]
    return run_cases(folder, wanted, last)


def run_cases(folder: Path, wanted: dict[str, list[Any]], last: list[Any]) -> Cases:
    (folder / "cases.json").write_text(json.dumps([*wanted.values(), last]))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SPARK_MASTER": "local[2]"}
    # A Java for seconds: without its second compiler, its other collectors and the page.
    environ["PYSPARK_SUBMIT_ARGS"] = (
        "--driver-memory 512m --driver-java-options '-XX:TieredStopAtLevel=1 -XX:+UseSerialGC' "
        "--conf spark.ui.enabled=false pyspark-shell"
    )
    line: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.helpers.processes.spark_cases",
        folder / "cases.json",
        folder / "results.json",
    ]
    with open(folder / "errors.txt", "w") as errors, subprocess.Popen(line, env=environ, stderr=errors) as driver:
        try:
            while len(results := read(folder / "results.json")) < len(wanted):
                assert driver.poll() is None, (results, (folder / "errors.txt").read_text())
                time.sleep(0.1)
            errors_seen = (folder / "errors.txt").read_text()
            while len(list(folder.glob("driver.work/*/*/*.task.json"))) < 3:
                assert driver.poll() is None
                time.sleep(0.01)
            started = psutil.Process(driver.pid).children(recursive=True)
        finally:
            driver.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(started, timeout=30)
    return Cases(dict(zip(wanted, results, strict=True)), folder, errors_seen, left)


def read(path: Path) -> list[Any]:
    return json.loads(path.read_text()) if path.exists() else []


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("name", ["steps", *COMMANDS])
def test_any_number_of_partitions_gives_the_bytes_of_the_local_engine(cases: Cases, name: str, partitions: int) -> None:
    assert cases.results[f"{name} {partitions}"] is None
    found = digest(cases.folder / str(partitions) / name)
    assert len(found) > 2
    assert found == digest(cases.folder / "local" / name)


def test_nothing_of_spark_or_java_is_on_the_screen(cases: Cases) -> None:
    # On a busy machine a stage takes minutes, each of which has its line.
    ours = re.compile(r"[\w ]+: [\d.,]+ of [\d.,]+ (tasks|GB)|spark: no executor has taken a task")
    assert [line for line in cases.errors.splitlines() if not ours.match(line)] == []


def test_a_bad_row_is_the_line_that_every_engine_prints(cases: Cases) -> None:
    assert cases.results["bad row"].startswith(f"error: {cases.folder / 'bad.jsonl'}:51: not JSON in UTF-8 (a bad row)")
    assert list((cases.folder / "bad").iterdir()) == []


def test_mistakes_are_one_line_and_defects_a_trace(cases: Cases) -> None:
    assert cases.results["good mistake"] == "error: file.jsonl:7: is wrong, 'quoted' and \"quoted\" 中文"
    assert cases.results["dies"].startswith(
        "error: --engine spark: a worker process died, most likely for lack of memory"
    )
    assert "ZeroDivisionError: a defect of ours" in cases.results["defect"]
    assert "spark_cases.py" in cases.results["defect"]


def test_a_task_that_runs_twice_at_once_is_done_once(cases: Cases) -> None:
    assert cases.results["twice"] == ["a", "a", "b", "b"]
    assert sorted((cases.folder / "stages/twice/times.txt").read_text().split()) == ["a", "b"]


def test_an_executor_that_does_not_see_the_folder_is_named(cases: Cases) -> None:
    assert "does not see the driver's folder /nowhere/at/all; input and output must lie" in cases.results["unseen"]
    assert cases.results["unseen"].startswith("error: --engine spark: the executor on ")
    assert list((cases.folder / "stages/unseen").iterdir()) == []


def test_killed_workers_lose_nothing(cases: Cases) -> None:
    assert cases.results["killed workers"] >= 1
    assert digest(cases.folder / "killed") == digest(cases.folder / "local/steps")
    assert not (cases.folder / "killed.work").exists()


def test_a_killed_driver_loses_nothing_and_leaves_no_process(cases: Cases) -> None:
    assert cases.left == []
    assert not (cases.folder / "driver").exists()
    done = {path: path.stat().st_mtime_ns for path in cases.folder.glob("driver.work/*/*/*.task.json")}
    assert len(done) >= 3
    # Another engine continues where this one was.
    run(words_of(cases.folder), cases.folder / "driver", LocalEngine(2))
    assert digest(cases.folder / "driver") == digest(cases.folder / "local/steps")
    assert not (cases.folder / "driver.work").exists()
