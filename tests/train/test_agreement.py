"""Ranks that do not fit together end before anything is built, and one line says which and why."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_kaiyuan
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.train.facts import start_facts
from tests.helpers.processes.ranks import free_port


def start(rank: int, recipe: Path, *overrides: str, port: int, package: Path | None = None) -> subprocess.Popen[str]:
    """One of two ranks, started by hand, from its own copy of the package if it has one."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if package is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(package), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "megatron_kaiyuan.cli", "train", str(recipe), *overrides]
    # Elsewhere: the current folder comes before all others.
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=recipe.parent)


def test_other_code_and_another_recipe_are_named(recipe: Path, tmp_path: Path) -> None:
    source = Path(megatron_kaiyuan.__file__).parent
    shutil.copytree(source, tmp_path / "copy" / "megatron_kaiyuan", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "copy" / "megatron_kaiyuan" / "errors.py", "a") as file:
        file.write("# changed\n")
    run_dir, port = tmp_path / "run", free_port()
    common = [f"run_dir={run_dir}"]
    other = start(1, recipe, *common, "train.seed=7", port=port, package=tmp_path / "copy")
    first = start(0, recipe, *common, port=port)
    _, errors = first.communicate(timeout=200)
    other.terminate()
    other.communicate(timeout=60)
    assert first.returncode == 2
    (line,) = (line for line in errors.splitlines() if not line.startswith("run: "))
    host = socket.gethostname()
    assert line.startswith("error: the ranks are about to run different things: the code of megatron_kaiyuan is xxh3:")
    assert f"train.seed is 1234 on rank 0 ({host}), 7 on rank 1 ({host})" in line
    assert not run_dir.exists()


@pytest.mark.slow
def test_missing_rank_ends_the_start_in_time(recipe: Path, tmp_path: Path) -> None:
    """pytest tests/train/test_agreement.py -m slow"""
    limits = ["parallel.timeout_minutes=0.1", "faults.hang_timeout_seconds=5"]
    only = start(0, recipe, f"run_dir={tmp_path / 'run'}", *limits, port=free_port())
    _, errors = only.communicate(timeout=120)
    assert only.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: rank 1 of 2 did not come within 6 seconds")
    assert line.endswith("(parallel.timeout_minutes)")
    assert not (tmp_path / "run").exists()


def test_facts_of_a_start(recipe: Path, tmp_path: Path) -> None:
    """Code, libraries, each field, and the phases: one byte more in a manifest is another phase."""
    run = load_run(recipe, [])
    facts = start_facts(run)
    assert facts["train.seed"] == "1234" and facts["model.logits_soft_cap"] == "30.0"
    assert {"python", "torch", "megatron_core", "numpy", "the code of megatron_kaiyuan"} < set(facts)
    shutil.copytree(recipe.parent / "phases" / "second", tmp_path / "second")
    copied = start_facts(load_run(recipe, [f"data.phases.1.path={tmp_path / 'second'}"]))
    names = [f"{recipe.parent / 'phases' / 'second'}/manifest.json", f"{tmp_path / 'second'}/manifest.json"]
    assert facts[names[0]] == copied[names[1]]
    with open(tmp_path / "second" / "manifest.json", "a") as file:
        file.write(" ")
    changed = start_facts(load_run(recipe, [f"data.phases.1.path={tmp_path / 'second'}"]))
    assert changed[names[1]] not in (copied[names[1]], "missing")
    (tmp_path / "second" / "manifest.json").unlink()
    assert start_facts(load_run(recipe, [f"data.phases.1.path={tmp_path / 'second'}"]))[names[1]] == "missing"


def test_a_kernel_that_works_on_some_ranks_only_is_a_difference(recipe: Path) -> None:
    """Where the recipe may take it."""

    def changed(*settings: str) -> list[str]:
        run = load_run(recipe, settings)
        here, there = start_facts(run, ("norm",)), start_facts(run)
        return [f"{name}: {here[name]}, {there[name]}" for name in here if here[name] != there[name]]

    assert changed() == ["the list of fused kernels that work: norm, empty"]
    assert changed("backend.norm=torch") == []
