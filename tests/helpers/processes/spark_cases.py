"""What test_spark.py runs in one Spark application, because its start takes most of the time.

    python -m tests.helpers.processes.spark_cases CASES.json RESULTS.json

A case is a list: the name of a function below and its arguments. The result of each is what it returned, or its error.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from data_tools.cli import app
from data_tools.engines import spark
from data_tools.engines.spark import SparkEngine
from data_tools.engines.stage import Stage, Target
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_json
from tests.helpers.files.small_steps import run as run_steps


def main() -> None:
    cases, results = json.loads(Path(sys.argv[1]).read_text()), []
    for name, *arguments in cases:
        try:
            results.append(globals()[name](*arguments))
        except UserError as error:
            results.append(f"error: {error}")
        write_json(Path(sys.argv[2]), results)


def command(partitions: int, line: list[str]) -> None:
    """A command line of kaiyuan-data."""
    SparkEngine.__init__.__defaults__ = (partitions,)
    try:
        app([line[0], "--engine", "spark", *line[1:]], standalone_mode=False)
    finally:
        SparkEngine.__init__.__defaults__ = (None,)


def steps(partitions: int, words: list[str], output: str) -> None:
    """A stage of steps."""
    run_steps(words, Path(output), SparkEngine(partitions))


def steps_with_killed_workers(words: list[str], output: str, seed: int) -> int:
    """The same with SIGKILL for a random worker of the executor at a random moment, started again until it is through.

    Returns the number of starts that did not.
    """
    draw, failed = random.Random(seed), 0
    while True:
        killer = threading.Thread(target=_kill_a_worker, args=(draw.uniform(0, 2),))
        if failed < 3:
            killer.start()
        try:
            run_steps(words, Path(output), SparkEngine(), seconds=0.02)
            return failed
        except UserError as error:
            assert "a worker process died" in str(error), error
            failed += 1
        finally:
            if killer.ident:
                killer.join()


def _kill_a_worker(seconds: float) -> None:
    """A process that the daemon of Python workers has forked, when there is one."""
    time.sleep(seconds)
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                parent = process.parent()
                if parent and "pyspark.daemon" in process.cmdline() and "pyspark.daemon" in parent.cmdline():
                    process.kill()
                    return
            except psutil.Error:
                continue
        time.sleep(0.01)


@dataclass(frozen=True)
class Misbehave:
    """A task of a kind."""

    folder: Path

    def __call__(self, kind: str, target: Target) -> dict[str, Any]:
        if kind == "mistake":
            raise UserError("file.jsonl:7: is wrong, 'quoted' and \"quoted\" 中文")
        if kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "defect":
            raise ZeroDivisionError("a defect of ours")
        with target.file(".txt") as path:
            path.write_text(kind)
        with open(self.folder / "times.txt", "a") as file:
            file.write(f"{kind}\n")
        return {"kind": kind}


def misbehave(folder: str, kinds: list[str]) -> Any:
    """A stage of such tasks."""
    stage = Stage("", Path(folder), Misbehave(Path(folder)), kinds, [f"{i}" for i in range(len(kinds))])
    try:
        return SparkEngine(2).run(stage)
    except RuntimeError as error:
        return f"trace: {error}"


def task_twice_at_once(folder: str) -> Any:
    """As Spark's speculation does: each task in two partitions."""
    stage = Stage("", Path(folder), Misbehave(Path(folder)), ["a", "b"], ["a", "b"])
    return sorted(
        record["kind"] for _, record in SparkEngine().call(stage, "finish", [(0,), (1,), (0,), (1,)], stage.folder)
    )


def folder_unseen(folder: str) -> Any:
    """An executor that looks at another file system than the driver."""
    spark_executor, spark._UNSEEN_SECONDS = spark._Executor, 0.5
    spark._Executor = lambda *arguments: replace(spark_executor(*arguments), sign=Path("/nowhere/at/all/sign"))  # type: ignore[assignment,misc]
    try:
        return misbehave(folder, ["good"])
    finally:
        spark._Executor = spark_executor  # type: ignore[misc]


if __name__ == "__main__":
    # Under a name of its own, by which executors find it.
    from tests.helpers.processes import spark_cases

    spark_cases.main()
