"""What a queue's run takes beyond its training, in seconds, beside the same run by `kaiyuan train` alone.

    python -m benchmarks.queue --runs 12 --steps 20

Runs of a small network (0.1 million parameters) are trained one after the other on one CPU core. `beyond training` of a
run is the time from one run's end to the next one's, less the seconds of its steps: fork, opening the data, building
the network, checkpoints, measuring on held-out text, the result. The time until the first run is whole, which has the
imports of torch and Megatron Core in it, is given apart. `processor time` is of runs of one step, imports apart: what
2 runs take is subtracted from what all take; it depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.startup import write_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder)
        tokens = f"train.train_tokens={512 * given.steps}"
        queue(folder, recipe, tokens, given.runs)
        alone(folder, recipe, tokens)
        few, many = (processor_seconds(folder, recipe, count) for count in (2, given.runs))
        print(f"  processor time of a run of one step               {(many - few) / (given.runs - 2):6.2f} s")
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, torch "
        f"{version('torch')}, Megatron Core {version('megatron-core')}"
    )


def queue(folder: Path, recipe: Path, tokens: str, count: int) -> None:
    from megatron_kaiyuan.research.queue import Run, run_all

    runs = [
        Run(f"seed={seed}", recipe, (tokens, f"train.seed={seed}"), {}, {"held out": folder / "text"})
        for seed in range(count)
    ]
    began = time.time()
    rows = run_all(folder / "queue", runs, slots=1)
    results = [folder / "queue" / "runs" / row["fingerprint"] / "result.json" for row in rows]
    ends = [path.stat().st_mtime for path in results]
    training = [row["training_seconds"] for row in rows]
    beyond = [ends[at] - ends[at - 1] - training[at] for at in range(1, count)]
    print(f"queue, {count} runs: {time.time() - began:.1f} s in all, of which training {sum(training):.1f} s")
    print(f"  until the first run is whole, its training apart  {ends[0] - began - training[0]:6.2f} s")
    print(f"  beyond training, a run                            {statistics.median(beyond):6.2f} s", end="")
    print(f"  ({min(beyond):.2f} to {max(beyond):.2f}); training {statistics.median(training):.2f} s")


def processor_seconds(folder: Path, recipe: Path, count: int) -> float:
    """User and system time of a queue of so many runs of one step, the imports of its worker included."""
    from megatron_kaiyuan.research.queue import Run, run_all

    runs = [
        Run(f"seed={seed}", recipe, ("train.train_tokens=512", f"train.seed={seed}"), {}, {"text": folder / "text"})
        for seed in range(count)
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_all(folder / f"one_step_{count}", runs, slots=1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def alone(folder: Path, recipe: Path, tokens: str) -> None:
    began = time.time()
    command = [
        sys.executable,
        "-m",
        "megatron_kaiyuan.cli",
        "train",
        str(recipe),
        tokens,
        f"run_dir={folder / 'alone'}",
    ]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ)
    print(f"kaiyuan train alone, one run, without measuring: {time.time() - began:.1f} s")


if __name__ == "__main__":
    main()
