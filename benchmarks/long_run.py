"""What a page of a long run costs: seconds, CPU seconds and peak memory of `kaiyuan report` and `kaiyuan compare`.

    python -m benchmarks.long_run --rows 1000000

Writes two runs whose `metrics.jsonl` has the form of a real one: every column of a job of several ranks in FP16,
held-out loss of four domains, the monitor's figures of 28 layers, checkpoints, overflows, a kill after which a thousand
rows were trained again, and a torn line. Then each command runs in a process of its own. The goal is 30 s and 1 GiB
for the page of a million rows; `compare` reads two such runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml

TOKENS_PER_STEP = 2**20
LOG_EVERY = 10
BEGUN = 1_750_000_000.0
SECONDS_PER_STEP = 2.0
DOMAINS = ("web", "code", "mathematics", "chinese")
KINDS = ("embedding", "qkv", "proj", "fc1", "fc2", "norms", "final_norm", "head")
OF_LAYERS = (
    "query", "key", "attention_output", "attention_post_norm", "residual_after_attention", "mlp_activation",
    "mlp_output", "mlp_post_norm", "residual",
)  # fmt: skip


def metrics_row(drawn: random.Random, number: int, rows: int, loss_above: float) -> dict[str, Any]:
    """Return row `number`, with the columns of `train/hooks/metrics.py` and of a job of 64 ranks."""
    step = number * LOG_EVERY
    loss = 1.8 + loss_above + 9 * math.exp(-number / rows * 20) + drawn.gauss(0, 0.05)
    rate = 2e-3 * min(1.0, number / (rows / 100)) * (1 - 0.9 * number / rows)
    speed = TOKENS_PER_STEP / (SECONDS_PER_STEP + abs(drawn.gauss(0, 0.02)))
    ranks = {"min": 1.2 + 0.01 * drawn.random(), "median": 1.25, "max": 1.3 + 0.1 * drawn.random()}
    held_out = {f"validation/{name}_loss": loss + 0.1 * place for place, name in enumerate(DOMAINS)}
    return {
        "step": step,
        "tokens": step * TOKENS_PER_STEP,
        "phase": "stable" if number < 0.8 * rows else "decay",
        "phase_tokens": step * TOKENS_PER_STEP,
        "loss": loss + drawn.gauss(0, 0.1),
        "loss_mean": loss,
        "loss_steps": LOG_EVERY,
        "lr": rate,
        **{f"lr_{kind}": rate * factor for kind, factor in (("embedding", 5.0), ("head", 1.0))},
        "grad_norm": None if number % 997 == 0 else 0.3 + 0.1 * drawn.random(),
        "loss_scale": 65536.0,
        "seconds_per_step": TOKENS_PER_STEP / speed,
        "tokens_per_second": speed,
        "tflops_per_device": speed * 1e-4,
        "mfu": 0.41,
        "mfu_causal": 0.38,
        "skipped_steps": number // 997,
        "overflow_steps": number // 997,
        "peak_memory_bytes": 61_234_567_168,
        "time": BEGUN + step * SECONDS_PER_STEP,
        **{f"rank_seconds_{name}": seconds for name, seconds in ranks.items()},
        "slowest_rank": drawn.randrange(64),
        "slowest_node": f"node{drawn.randrange(8):03d}",
        "optimizer/clipped_heads": drawn.random(),
        **({"validation/loss": loss + 0.1, **held_out} if number % 200 == 0 else {}),
    }


def monitor_row(drawn: random.Random, step: int, layers: int) -> dict[str, Any]:
    """Return an event of the monitor (`train/hooks/monitoring.py`)."""

    def figures(places: int) -> dict[str, list[float]]:
        peaks = [round(4 + 4 * drawn.random(), 3) for _ in range(places)]
        bits = [round(math.log2(65504 / peak), 2) for peak in peaks]
        return {"l1": peaks, "rms": peaks, "max": peaks, "headroom_bits": bits}

    whole = {name: figures(1) for name in ("embedding", "logits", "capped_logits")}
    places = {kind: 1 if kind in ("embedding", "final_norm", "head") else layers for kind in KINDS}
    return {
        "event": "monitor",
        "step": step,
        "tokens": step * TOKENS_PER_STEP,
        "activations": {**whole, **{name: figures(layers) for name in OF_LAYERS}},
        "gradients": {kind: {"norm": [0.1] * count, "max": [0.01] * count} for kind, count in places.items()},
        "update_to_weight": {kind: [round(drawn.random(), 5)] * count for kind, count in places.items()},
        "time": BEGUN + step * SECONDS_PER_STEP,
    }


def lines(rows: int, seed: int, monitor_every: int, layers: int) -> Iterator[str]:
    """The lines of a metrics.jsonl: killed at six tenths, then resumed from a thousand rows before."""
    drawn = random.Random(seed)
    killed = int(0.6 * rows)
    resumed = max(0, killed - 1000)
    start = {"world_size": 64, "platform": "cuda", "parameters": 2_100_000_000}
    yield json.dumps({"event": "start", "step": 0, "tokens": 0, **start, "time": BEGUN})
    yield json.dumps({"event": "utilization", "flops_per_token": 14e9, "device": "NVIDIA H100", "time": BEGUN})
    for begin, end in ((1, killed), (resumed + 1, rows)):
        if begin > 1:
            step = resumed * LOG_EVERY
            yield '{"step": 6, "tok'
            yield json.dumps({"event": "resume", "step": step, **start, "time": BEGUN + killed * LOG_EVERY * 2.0 + 600})
        for number in range(begin, end + 1):
            step = number * LOG_EVERY
            yield json.dumps(metrics_row(drawn, number, rows, 0.01 * seed))
            if number % monitor_every == 0:
                yield json.dumps(monitor_row(drawn, step, layers))
            if number % 1000 == 0:
                yield json.dumps({"event": "checkpoint", "step": step, "seconds": 20.0, "time": BEGUN + step * 2.0})
            if number % 997 == 0:
                yield json.dumps({"event": "overflow", "step": step, "message": "fc1", "time": BEGUN + step * 2.0})


def write_run(folder: Path, rows: int, seed: int, monitor_every: int, layers: int) -> Path:
    """Write a run's folder, without checkpoints and phases."""
    folder.mkdir()
    file: TextIO
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines(rows, seed, monitor_every, layers))
    config = {
        "run_dir": str(folder),
        "model": {"preset": "kaiyuan-2b"},
        "data": {"phases": [{"path": "phases/stable", "peak_lr": 2e-3}]},
        "train": {"seq_length": 4096, "micro_batch_size": 4, "global_batch_size": 256, "seed": seed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def measure(name: str, command: list[str]) -> None:
    """Run a command of `kaiyuan` and print what it took."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "megatron_kaiyuan.cli", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{name}: failed")
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{name}: {seconds:.1f} s, {cpu:.1f} CPU seconds, peak memory {usage.ru_maxrss / 2**20:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--monitor-every", type=int, default=100, help="rows from one event of the monitor to the next")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--keep", type=Path, help="write the runs there, and leave them; runs that lie there are taken")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = [folder / f"run_{seed}" for seed in (0, 1)]
        for seed, run in enumerate(runs):
            if not run.exists():
                write_run(run, given.rows, seed, given.monitor_every, given.layers)
        size = (runs[0] / "metrics.jsonl").stat().st_size
        watched = f"{given.rows // given.monitor_every:,} events of the monitor ({given.layers} layers)"
        print(f"{given.rows:,} rows and {watched}: {size / 1e6:,.0f} MB a run", flush=True)
        page, both = folder / "report.html", folder / "compare.html"
        measure("kaiyuan report", ["report", str(runs[0]), "--output", str(page)])
        measure("kaiyuan compare, two runs", ["compare", *map(str, runs), "--output", str(both)])
        print(f"pages: report {page.stat().st_size / 1e6:.1f} MB, compare {both.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
