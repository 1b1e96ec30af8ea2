"""spark_submit.sh: what it starts, exit codes, one line for a mistake, and no process left."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from data_tools.tokenizers.train_tokenizer import train_and_save
from tests.helpers.processes.launched import ROOT, launched, succeed


def dry_run(*arguments: object, **environ: str) -> str:
    return succeed("spark_submit.sh", "--dry-run", *arguments, environ=environ)


def test_options_go_to_spark_and_the_command_to_the_driver() -> None:
    line = dry_run("--master", "k8s://https://a:6443", "--conf", "a=b c", "--", "preprocess", "--input", "x y")
    shown = "PYSPARK_SUBMIT_ARGS='--master k8s://https://a:6443 --conf '\\''a=b c'\\'' pyspark-shell'"
    assert f"{shown} 'python' '-m' 'data_tools' 'preprocess' '--engine' 'spark' '--input' 'x y'\n" in line
    assert "PYSPARK_SUBMIT_ARGS='--master yarn pyspark-shell'" in dry_run("--", "score", SPARK_MASTER="yarn")
    assert "PYSPARK_PYTHON='./env/bin/python'" in dry_run("--", "score", PYSPARK_PYTHON="./env/bin/python")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--master", "yarn"], "after the options of Spark, give -- and a command of kaiyuan-data"),
        (["--master"], "--master needs a value"),
        (["--deploy-mode", "cluster", "--", "score"], "--deploy-mode cluster: the driver runs where this script runs"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with launched("spark_submit.sh", *arguments) as job:
        code, output, errors = job.finish()
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1


@pytest.fixture
def work(tmp_path: Path) -> list[object]:
    """A command with some seconds of work."""
    home = os.environ.get("JAVA_HOME")
    if not shutil.which(f"{home}/bin/java" if home else "java"):
        pytest.skip("there is no Java: install Java 17 (Debian: openjdk-17-jre-headless), or set JAVA_HOME")
    row = json.dumps({"text": (ROOT / "LICENSE").read_text()})
    (tmp_path / "in.jsonl").write_text(f"{row}\n" * 4000)
    (tmp_path / "few.jsonl").write_text(f"{row}\n" * 100 + "no JSON\n")
    (tmp_path / "one.jsonl").write_text(f"{row}\n")
    train_and_save([str(tmp_path / "one.jsonl")], "text", 512, tmp_path / "tokenizer.json", False)
    options = ["--driver-memory", "512m", "--conf", "spark.ui.enabled=false"]
    options += ["--driver-java-options", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC", "--"]
    command = ["preprocess", "--tokenizer-model", tmp_path / "tokenizer.json", "--output-prefix", tmp_path / "c"]
    return [*options, *command, "--task-bytes", 200_000, "--input"]


@pytest.mark.spark
def test_the_exit_code_and_the_line_of_a_mistake_come_through(work: list[object], tmp_path: Path) -> None:
    with launched("spark_submit.sh", *work, tmp_path / "few.jsonl", environ={"SPARK_MASTER": "local[2]"}) as job:
        code, _, errors = job.finish()
        job.require_gone()
    assert code == 2
    # On a busy machine it takes minutes, each of which has its line.
    (line,) = (line for line in errors.splitlines() if not line.startswith(("preprocess: ", "spark: no executor")))
    assert line.startswith(f"error: {tmp_path}/few.jsonl:101: not JSON in UTF-8 (a bad row)")


@pytest.mark.spark
def test_what_spark_refuses_is_one_line(work: list[object], tmp_path: Path) -> None:
    with launched("spark_submit.sh", *work, tmp_path / "one.jsonl", environ={"SPARK_MASTER": "somewhere"}) as job:
        code, _, errors = job.finish()
    assert (code, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: --engine spark: Spark did not start (org.apache.spark.SparkException: ")
    assert errors.endswith("look at --master and the other options of Spark\n")


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, (143, -15)), (signal.SIGINT, (130,))])
def test_a_signal_ends_it_and_the_same_command_continues(
    work: list[object], tmp_path: Path, number: signal.Signals, expected: tuple[int, ...]
) -> None:
    script, *line = ["spark_submit.sh", "--master", "local[2]", *work, tmp_path / "in.jsonl"]
    with launched(script, *line) as job:
        job.wait_for(lambda: any(tmp_path.glob("*.shards/*.task.json")))
        job.script.send_signal(number)
        job.require_gone()
        assert job.finish()[0] in expected
    assert not (tmp_path / "c_text_document.bin").exists()
    assert f"{tmp_path}/c_text_document\n" in succeed(script, *line)
