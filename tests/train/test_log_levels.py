"""A run of two ranks under each level: which lines it logs, in which order, on which stream."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_kaiyuan import logs
from tests.helpers.training.small_run import TOKENS_PER_STEP, metrics, train

SHORT = f"train.train_tokens={3 * TOKENS_PER_STEP}"
RESULT = f"train: step 3/3, {3 * TOKENS_PER_STEP:,} tokens, finished\n"
DEBUG = re.compile(r"debug: \d\d:\d\d:\d\d\.\d{3} rank ([01]) megatron_kaiyuan\.[\w.]+: \S")


def logged(recipe: Path, run_dir: Path, *options: str) -> list[str]:
    """Lines of standard error; standard output is the result alone."""
    done = train(2, recipe, f"run_dir={run_dir}", SHORT, *options)
    assert (done.returncode, done.stdout) == (0, RESULT), done.stderr[-3000:]
    assert sorted(metrics(run_dir)) == [1, 2, 3]
    return done.stderr.splitlines()


def beginnings(lines: list[str]) -> list[str]:
    """Of the lines that rank 0 logs, what is the same in each run: no figures of time."""
    names = ("run:", "warning:", "implementations:", "utilization:", "checkpoint:", "st")
    return [" ".join(line.split(" |")[0].split()[:2]) for line in lines if line.startswith(names)]


@pytest.fixture(scope="module")
def usual(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return logged(recipe, tmp_path_factory.mktemp("usual") / "run")


def test_rank_0_speaks_for_both(usual: list[str]) -> None:
    found = beginnings(usual)
    assert found[0].startswith("run: ") and found[-1] == "stop: step"
    assert [line for line in found if line.startswith("step ")] == ["step 1/3", "step 2/3", "step 3/3"]
    block = ["run:", "network:", "data:", "layout:", "precision:", "start:"]
    named = [line.split()[0] for line in usual if line.split()[0] in block]
    assert named == block
    for name, times in {"run:": 1, "start:": 1, "implementations:": 0, "startup:": 1, "checkpoint:": 2}.items():
        assert sum(line.startswith(name) for line in found) == times, name
    assert found.index("step 1/3") < found.index("startup: seconds") < found.index("step 2/3")
    assert not [line for line in usual if line.startswith("debug: ")]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_quiet_leaves_the_result(how: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv(logs.VARIABLE, "error")
    assert logged(recipe, tmp_path / "run", *(["--quiet"] if how == "option" else [])) == []


def test_warnings_alone(usual: list[str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "warning")
    expected = [line for line in usual if line.startswith("warning: ")]
    assert logged(recipe, tmp_path / "run") == expected and len(expected) == 2


def test_verbose_adds_lines_of_each_rank(usual: list[str], recipe: Path, tmp_path: Path) -> None:
    found = logged(recipe, tmp_path / "run", "--verbose")
    assert [line for line in beginnings(found) if "run: " not in line] == beginnings(usual)[1:]
    ranks = {match[1] for line in found if (match := DEBUG.match(line))}
    assert ranks == {"0", "1"} and all(DEBUG.match(line) for line in found if line.startswith("debug: "))


def test_quiet_leaves_the_error_once(recipe: Path, tmp_path: Path) -> None:
    done = train(2, recipe, f"run_dir={tmp_path / 'run'}", "train.global_batch_size=7", "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "global_batch_size" in line
