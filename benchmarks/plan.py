"""Peak memory of real training against what `kaiyuan plan` says, rank by rank.

    OMP_NUM_THREADS=1 python -m benchmarks.plan

Each case trains a network of some 40 M parameters on two gloo ranks, checkpoints included. Measured is the largest
resident set of a rank, less that of the same training with a network of next to nothing: interpreter, libraries, gloo.
The allocator gives back what is freed (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_): what it keeps by default is its
affair. With --platform cuda the device's peak of allocated memory is measured instead, one GPU a rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

RANKS = 2
SEQ_LENGTH = 256
GLOBAL_BATCH = 8
SHAPE = {
    "num_layers": 8,
    "hidden_size": 512,
    "ffn_hidden_size": 1536,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "kv_channels": 64,
    "vocab_size": 16384,
    "max_position_embeddings": SEQ_LENGTH,
}
# The same layers, of no weight.
NEXT_TO_NOTHING = {"hidden_size": 16, "ffn_hidden_size": 16, "kv_channels": 2, "vocab_size": 128}
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
CASES: dict[str, list[str]] = {
    "dp2": ["train.micro_batch_size=4"],
    "tp2": [TENSOR, "train.micro_batch_size=4"],
    "pp2": [PIPELINE, "train.micro_batch_size=4"],
    "dp2, bf16": ["train.micro_batch_size=4", "train.precision=bf16"],
    "dp2, micro-batch 1": ["train.micro_batch_size=1"],
    "dp2, plain optimizer": ["train.micro_batch_size=4", "parallel.use_distributed_optimizer=false"],
    "tp2, sequence parallel": [TENSOR, "parallel.sequence_parallel=true", "train.micro_batch_size=2"],
    "pp2, micro-batch 2": [PIPELINE, "train.micro_batch_size=2"],
}


def write_recipe(folder: Path, steps: int) -> Path:
    """A phase of random tokens and the recipe that trains on it."""
    from data_tools.corpora.corpus import CorpusWriter, Documents
    from data_tools.curriculum.build import build_recipe

    tokens = (steps + 1) * GLOBAL_BATCH * SEQ_LENGTH
    drawn = np.random.default_rng(0).integers(0, NEXT_TO_NOTHING["vocab_size"], tokens)
    tokenizer = {"path": "none", "fingerprint": "xxh3:0", "vocab_size": 128, "eod_id": 0}
    with CorpusWriter(folder / "text", tokenizer, []) as writer:
        writer.add(Documents(drawn, [len(drawn)], [1], ["benchmark"], ["benchmark"], {}))
    phase = {"name": "phase", "order": "shuffle", "seed": 1, "datasets": [{"corpus": "text", "keep": "all"}]}
    (folder / "order.yaml").write_text(yaml.safe_dump({"corpora": {"text": str(folder / "text")}, "phases": [phase]}))
    build_recipe(folder / "order.yaml", (), folder / "phases", None, 1)
    train = {"seq_length": SEQ_LENGTH, "micro_batch_size": 1, "global_batch_size": GLOBAL_BATCH}
    recipe = {
        "run_dir": str(folder / "run"),
        "platform": "cpu",
        "model": SHAPE,
        "data": {"phases": [{"path": str(folder / "phases/phase"), "peak_lr": 1e-3}]},
        "train": {**train, "train_tokens": steps * GLOBAL_BATCH * SEQ_LENGTH},
        "checkpoint": {"save_every_steps": 1, "keep_last": 2},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def measure(recipe: Path, overrides: Sequence[str], folder: Path) -> list[int]:
    """Peaks of the ranks, in bytes."""
    folder.mkdir(parents=True)
    launcher = [sys.executable, "-m", "megatron_kaiyuan.cluster.torchrun", "--standalone"]
    worker = ["-m", "benchmarks.plan", "--rank", str(folder), "--recipe", str(recipe), *overrides]
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*launcher, "--nproc-per-node", str(RANKS), *worker, f"run_dir={folder / 'run'}"],
        env={"OMP_NUM_THREADS": "1", **os.environ, **allocator},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def train_as_rank(folder: Path, recipe: Path, overrides: Sequence[str]) -> None:
    """One rank: train, and leave the peak in a file."""
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster import discover
    from megatron_kaiyuan.config import load_run
    from megatron_kaiyuan.train.startup import Startup

    who, run = discover(os.environ), load_run(recipe, overrides)
    device = platform.activate(run.platform, who.local_rank)
    from megatron_kaiyuan.train.start import train

    train(run, who, device, Startup())
    (folder / f"{who.rank}.json").write_text(json.dumps(device.peak_memory_bytes()))


def planned(recipe: Path, overrides: Sequence[str], device_name: str) -> list[Any]:
    """What the plan says of the stage of each rank."""
    from megatron_kaiyuan.config import load_run
    from megatron_kaiyuan.planning.memory import stage_memory
    from megatron_kaiyuan.planning.parameters import PipelineStage
    from megatron_kaiyuan.platform.datasheets import DEVICES

    run = load_run(recipe, overrides)
    stages = run.parallel.pipeline_model_parallel_size
    indices = [rank * stages // RANKS for rank in range(RANKS)]
    return [stage_memory(PipelineStage(run, RANKS, index), DEVICES[device_name]).device for index in indices]


def compare(name: str, recipe: Path, bases: list[int], folder: Path, platform: str) -> list[float]:
    """Measure one case and print a row for each rank; planned over measured."""
    overrides = [*CASES[name], f"platform={platform}"]
    plans = planned(recipe, overrides, "h100" if platform == "cuda" else "cpu")
    ratios = []
    for rank, (peak, base, plan) in enumerate(zip(measure(recipe, overrides, folder), bases, plans, strict=True)):
        measured = peak - base
        ratios.append(plan.total / measured)
        parts = ", ".join(f"{part} {size / 1e6:,.0f}" for part, size in vars(plan).items())
        row = f"{name:24} {rank}  {plan.total / 1e6:8,.0f} {measured / 1e6:9,.0f}  {ratios[-1]:.3f}   {parts}"
        print(row, flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="may be repeated; default: all")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--platform", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--folder", type=Path, help="some GB for a while")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    given, overrides = parser.parse_known_args()
    if given.rank:
        train_as_rank(given.rank, given.recipe, overrides)
        return
    if overrides:
        parser.error(f"unknown: {' '.join(overrides)}")
    print(f"{'MB':24}      planned  measured  ratio   of the planned", flush=True)
    ratios = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name_of_folder:
        folder = Path(name_of_folder)
        recipe = write_recipe(folder, given.steps)
        small = [f"model.{field}={value}" for field, value in NEXT_TO_NOTHING.items()]
        bases = [0] * RANKS if given.platform == "cuda" else measure(recipe, small, folder / "base")
        print("taken off, MB: " + ", ".join(f"{base / 1e6:,.0f}" for base in bases))
        for index, name in enumerate(given.case or CASES):
            ratios += compare(name, recipe, bases, folder / str(index), given.platform)
    print(f"planned over measured: {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
