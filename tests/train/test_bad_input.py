"""A user's mistake: one line that names the thing, exit code 2, the other ranks end at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from data_tools.curriculum.build import build_recipe
from tests.helpers.processes.rank_server import run
from tests.helpers.training.small_run import train, write_corpus

MISTAKES = {
    "typo": (
        ["train.global_batch_sise=8"],
        "train.global_batch_sise: unknown field; did you mean 'global_batch_size'?",
    ),
    "preset": (["model.preset=kaiyuan-small"], "model.preset"),
    "phase": (["data.phases.0.path=/nowhere"], "/nowhere"),
    "world": (["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"], "multiple of 4"),
    "batch": (["train.global_batch_size=6"], "train.global_batch_size 6"),
    "vocabulary": (["model.vocab_size=128"], "vocabulary"),
    "tokens": (["train.train_tokens=100000000"], "train.train_tokens"),
    "warm-up": (["optimizer.warmup_tokens=100000000"], "optimizer.warmup_tokens: 100,000,000"),
    "rising decay": (["data.phases.0.final_lr=1.0"], "final_lr 1 is above peak_lr"),
    "override": (["nonsense"], "'nonsense'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_check_finds_mistakes_in_the_recipe(mistake: str, recipe: Path, tmp_path: Path) -> None:
    """What `launch/torchrun.sh` runs before it starts anything."""
    overrides, named = MISTAKES[mistake]
    words = ["train", recipe, f"run_dir={tmp_path / 'run'}", *overrides, "--check", "--world-size", "2"]
    done = run(1, ["-m", "megatron_kaiyuan.cli", *words])
    assert done.returncode == 2
    assert named in done.stderr and done.stderr.count("error: ") == 1 and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_check_needs_no_torch(recipe: Path) -> None:
    """And so answers at once: a fresh process that meets a mistake which only the files of the phases show."""
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules));"
        "sys.argv = ['kaiyuan', 'train', *sys.argv[1:], '--check', '--world-size', '2'];"
        "from megatron_kaiyuan.cli import main; main()"
    )
    command: list[str | Path] = [sys.executable, "-c", code, recipe, *MISTAKES["vocabulary"][0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "False\n") and MISTAKES["vocabulary"][1] in done.stderr


@pytest.mark.parametrize("mistake", ["typo", "world", "vocabulary"])
def test_two_ranks_say_it_once(mistake: str, recipe: Path, tmp_path: Path) -> None:
    overrides, named = MISTAKES[mistake]
    _expect(recipe, [f"run_dir={tmp_path / 'run'}", *overrides], named)
    assert not (tmp_path / "run").exists()


def test_missing_recipe_and_device(recipe: Path, tmp_path: Path) -> None:
    _expect(tmp_path / "absent.yaml", [], "absent.yaml: recipe not found")
    if not torch.cuda.is_available():
        command: list[str | Path] = [
            "-m",
            "megatron_kaiyuan.cli",
            "train",
            recipe,
            f"run_dir={tmp_path / 'run'}",
            "platform=cuda",
        ]
        _is_mistake(run(2, command, imported="torch"), "platform cuda")


def test_truncated_and_corrupt_corpus(recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(recipe.parent / "corpus", tmp_path / "corpus")
    shutil.copytree(recipe.parent / "phases", tmp_path / "phases")
    overrides = [f"run_dir={tmp_path / 'run'}"]
    overrides += [f"data.phases.{i}.path={tmp_path / 'phases' / name}" for i, name in enumerate(("first", "second"))]
    tokens, index = tmp_path / "corpus" / "text.bin", tmp_path / "corpus" / "text.idx"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-1000])
    _expect(recipe, overrides, "text.bin")
    tokens.write_bytes(whole)
    index.write_bytes(b"garbage" + index.read_bytes()[7:])
    _expect(recipe, overrides, "text.idx")


def test_ids_outside_the_vocabulary_that_no_manifest_declares(recipe: Path, tmp_path: Path) -> None:
    """A stock Megatron corpus has no manifest: the ids are checked as they are read."""
    write_corpus(tmp_path / "text", vocab=1000)
    for suffix in (".manifest.json", ".meta.parquet"):
        (tmp_path / f"text{suffix}").unlink()
    phase = {"name": "only", "order": "shuffle", "seed": 1, "datasets": [{"corpus": "text", "keep": "all"}]}
    order = tmp_path / "order.yaml"
    order.write_text(yaml.safe_dump({"corpora": {"text": str(tmp_path / "text")}, "phases": [phase]}))
    build_recipe(order, (), tmp_path / "phases", None, 1)
    phases = [{"path": str(tmp_path / "phases" / "only"), "peak_lr": 1e-3}]
    done = train(2, recipe, f"run_dir={tmp_path / 'run'}", f"data.phases={phases}")
    assert done.returncode == 2, done.stderr
    assert "vocabulary" in done.stderr and "text" in done.stderr and "Traceback" not in done.stderr


def test_no_room_for_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    done = train(2, recipe, f"run_dir={tmp_path / 'run'}", largest_file=500_000)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: /") == 1 and "Traceback" not in done.stderr
    assert "step_0: the checkpoint could not be written (rank " in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    # The first line, once for both ranks, says where all of it goes.
    assert done.stderr.splitlines()[0] == f"run: {tmp_path / 'run'}, by {recipe}" and done.stderr.count("run: ") == 1


def test_a_run_folder_that_cannot_be_made(recipe: Path) -> None:
    _expect(recipe, ["run_dir=/proc/nowhere"], "/proc/nowhere")


def _expect(recipe: Path, overrides: list[str], named: str) -> None:
    started = time.monotonic()
    _is_mistake(train(2, recipe, *overrides), named)
    # "Within seconds" is for a quiet machine; a hang would take minutes.
    assert time.monotonic() - started < 90


def _is_mistake(done: subprocess.CompletedProcess[str], named: str) -> None:
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
