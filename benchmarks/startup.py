"""Start-up: from the launch of a job to its first step, by part, beside what stock libraries take to be imported.

    OMP_NUM_THREADS=1 python -m benchmarks.startup --ranks 2 --rounds 5

A round starts a new run of a small network under the launcher, on CPU ranks, and ends it after one step. Parts are
rank 0's, from the `startup` event of `metrics.jsonl`; `launcher` is what went before its process, from the launch on.
Then as many processes import, all at once, torch and what a plain Megatron Core script for the same training needs.
Printed are medians, with the fastest and the slowest round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

STOCK = {
    "import torch": "import torch",
    "import torch, Megatron Core": """
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
""",
}
TIMED = "import time\nbegan = time.perf_counter()\n{}\nprint(time.perf_counter() - began)"
VOCABULARY, DOCUMENTS, LENGTH = 256, 64, 200


def write_recipe(folder: Path, documents: int = DOCUMENTS, batch: int = 8) -> Path:
    """A corpus of random tokens, a phase of it, and a recipe that ends after one step.

    Args:
        batch: samples of 64 tokens in a step.
    """
    from data_tools.corpora.corpus import CorpusWriter, Documents
    from data_tools.curriculum.build import build_recipe

    prefix = folder / "text"
    tokenizer = {"path": "none", "fingerprint": "xxh3:0", "vocab_size": VOCABULARY, "eod_id": 0}
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, documents * LENGTH)
    with CorpusWriter(prefix, tokenizer, []) as writer:
        names = ["random"] * documents
        writer.add(Documents(tokens, [LENGTH] * documents, [1] * documents, names, names, {}))
    phase = {"name": "only", "order": "shuffle", "seed": 1, "datasets": [{"corpus": "text"}]}
    order = {"corpora": {"text": str(prefix)}, "phases": [phase]}
    (folder / "order.yaml").write_text(yaml.safe_dump(order))
    build_recipe(folder / "order.yaml", (), folder / "phases", None, 1)
    shape = {"preset": "kaiyuan-tiny", "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}
    recipe = {
        "run_dir": "given below",
        "platform": "cpu",
        "model": {**shape, "vocab_size": VOCABULARY},
        "data": {"phases": [{"path": str(folder / "phases" / "only"), "peak_lr": 1e-3}]},
        "train": {
            "seq_length": 64,
            "micro_batch_size": 2 if batch == 8 else 1,
            "global_batch_size": batch,
            "train_tokens": 64 * batch,
        },
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def launch(ranks: int, recipe: Path, run_dir: Path) -> dict[str, float]:
    """Seconds of each part of one start."""
    launcher = [sys.executable, "-m", "megatron_kaiyuan.cluster.torchrun", "--standalone"]
    program = ["-m", "megatron_kaiyuan.cli", "train", "--quiet", str(recipe), f"run_dir={run_dir}"]
    began = time.time()
    subprocess.run([*launcher, "--nproc-per-node", str(ranks), *program], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (event,) = [row for row in rows if row.get("event") == "startup"]
    parts = {name: value for name, value in event.items() if name not in ("event", "seconds", "time")}
    total = event["time"] - began
    return {"launcher": total - event["seconds"], **parts, "launch to first step": total}


def import_stock(ranks: int, code: str) -> float:
    """Seconds that the slowest of several processes takes for its imports."""
    command = [sys.executable, "-W", "ignore", "-c", TIMED.format(code)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(ranks)
    ]
    return max(float(process.communicate()[0]) for process in started)


def print_times(seconds: Mapping[str, Sequence[float]]) -> None:
    for name, values in seconds.items():
        print(f"{name:28} {statistics.median(values):6.2f} s  ({min(values):.2f} to {max(values):.2f})")
    total, stock = seconds["launch to first step"], seconds["import torch, Megatron Core"]
    whole = statistics.median(one / other for one, other in zip(total, stock, strict=True))
    imports = statistics.median(one / other for one, other in zip(seconds["imports"], stock, strict=True))
    print(f"our imports against the stock ones: {imports:.2f}; launch to first step against them: {whole:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder))
        # The round before the first warms the page cache and the compiled files.
        for index in range(-1, given.rounds):
            found = launch(given.ranks, recipe, Path(folder) / f"run_{index}")
            found |= {name: import_stock(given.ranks, code) for name, code in STOCK.items()}
            for name, value in found.items() if index >= 0 else ():
                seconds[name].append(value)
    print(
        f"{given.ranks} ranks, {given.rounds} rounds, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {version('torch')}, Megatron Core {version('megatron-core')}"
    )
    print_times(seconds)


if __name__ == "__main__":
    main()
