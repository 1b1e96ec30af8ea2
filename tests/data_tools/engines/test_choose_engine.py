"""The option --engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from data_tools.engines.choose import NAMES, choose_engine
from data_tools.engines.local import LocalEngine
from data_tools.engines.ranks import RanksEngine
from data_tools.engines.spark import SparkEngine
from data_tools.reading.place import Place
from megatron_kaiyuan.errors import UserError

RANK = {f"OMPI_COMM_WORLD_{name}": value for name, value in {"RANK": "1", "SIZE": "4", "LOCAL_RANK": "1"}.items()}
RANK["OMPI_COMM_WORLD_LOCAL_SIZE"] = "2"


def test_auto_takes_the_ranks_of_a_launcher_else_this_machine() -> None:
    alone = choose_engine("auto", 3, {})
    assert isinstance(alone, LocalEngine) and alone.is_first and (alone.place, alone.workers) == (Place(), 3)
    for name in ("auto", "mpi", "slurm"):
        rank = choose_engine(name, 3, RANK)
        assert isinstance(rank, RanksEngine) and not rank.is_first
        assert (rank.place, rank.workers) == (Place(1, 4, 2), 3)
    assert choose_engine("auto", 0, {}).workers >= choose_engine("auto", 0, RANK).workers >= 1
    assert isinstance(choose_engine("spark", 0, RANK), SparkEngine)


@pytest.mark.parametrize(
    ("name", "workers", "environ", "message"),
    [
        ("ray", 0, {}, f"--engine ray: is not known; use {', '.join(NAMES)}"),
        ("local", -1, {}, "--workers -1: must be between 0 and 4,096"),
        ("local", 10**9, {}, "--workers 1000000000: must be between 0 and 4,096"),
        ("local", 1, RANK, "--engine local: 4 ranks were started; use --engine auto, or start one process"),
        ("spark", 2, {}, "--workers 2: Spark's own options say how many executors and cores it takes"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, workers: int, environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        choose_engine(name, workers, environ)
    assert str(error.value) == message


WITHOUT_PYSPARK = """
import sys
sys.modules["pyspark"] = None
from data_tools.engines.spark_context import spark_context
from megatron_kaiyuan.errors import UserError
try:
    spark_context()
except UserError as error:
    print(error)
"""


def test_without_pyspark_or_java_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(code: str, **environ: str) -> str:
        environ = {"PATH": "/nowhere", **environ}
        return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True).stdout

    line = said(WITHOUT_PYSPARK)
    assert line.startswith("--engine spark needs the package 'pyspark', which cannot be imported")
    # Not this project's own name, which an index may know as somebody else's.
    assert line.endswith(": pip install 'pyspark<5,>=4'\n")
    line = said(WITHOUT_PYSPARK.replace('sys.modules["pyspark"] = None', ""), JAVA_HOME="/nowhere")
    assert line.startswith("--engine spark: there is no Java; Spark needs Java 17 or 21: install it")
    assert line.count("\n") == 1
