"""What keeps FP16 training stable: a small network with each addition on and off, at learning rates up to breaking.

    python -m benchmarks.fp16_stability --jobs 2                  # a CPU, see SIZES for how long
    python -m benchmarks.fp16_stability --size gpu --jobs 1       # a CUDA GPU; not run yet
    python -m benchmarks.fp16_stability --report                  # table and figures of what is there

Real training (`kaiyuan train`'s own session, in this process) on English text that `kaiyuan-data harvest` finds on this
machine, the same tokens in the same order for all. Each trial is a line in FOLDER/SIZE/trials.jsonl; trials that are
there are not run again, so that a stopped benchmark continues. A trial counts as stable when it took all its steps, no
forward pass left the precision's range (a loss that is not finite), and the training loss of its last tenth is no more
than half a nat above the least of any tenth. The highest stable learning rate is that of the ladder up to which every
seed was stable.

Half precision on a CPU is emulated: its range and rounding are those of FP16, its speed is not.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fp16_stability_report import Outcome, write_report


@dataclass(frozen=True)
class Size:
    """A deep and narrow shape and how long it is trained.

    Attributes:
        rates: the ladder of peak learning rates, ascending.
        long_rate, long_steps: of the long runs.
    """

    platform: str
    model: dict[str, Any]
    vocab_size: int
    seq_length: int
    batch: int
    steps: int
    rates: tuple[float, ...]
    long_rate: float
    long_steps: int


SIZES = {
    # A trial takes about 8 s on one core in any precision; two seeds half an hour on two.
    "cpu": Size(
        platform="cpu",
        model={
            "num_layers": 8,
            "hidden_size": 32,
            "ffn_hidden_size": 96,
            "num_attention_heads": 2,
            "num_query_groups": 1,
            "kv_channels": 16,
        },
        vocab_size=512,
        seq_length=64,
        batch=4,
        steps=60,
        rates=(1.6e-2, 6.4e-2, 0.128, 0.256, 0.512),
        long_rate=6.4e-2,
        long_steps=300,
    ),
    "gpu": Size(
        platform="cuda",
        model={
            "num_layers": 24,
            "hidden_size": 512,
            "ffn_hidden_size": 1536,
            "num_attention_heads": 8,
            "num_query_groups": 4,
            "kv_channels": 64,
        },
        vocab_size=8192,
        seq_length=512,
        batch=32,
        steps=500,
        rates=(1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.256),
        long_rate=4e-3,
        long_steps=5000,
    ),
}

_OFF: dict[str, Any] = {"sandwich_norm": False, "logits_soft_cap": None, "qk_layernorm": False}
_ON: dict[str, Any] = {
    "sandwich": {"sandwich_norm": True},
    "cap": {"logits_soft_cap": 30.0},
    "qk": {"qk_layernorm": True},
}
KAIYUAN = "sandwich+cap+qk"


def networks(layers: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Sections of the recipe by the name of the network: all combinations, then variants of single choices."""
    models = {}
    for bits in range(8):
        names = [name for place, name in enumerate(_ON) if bits >> place & 1]
        models["+".join(names) or "plain"] = {**_OFF, **{key: _ON[name][key] for name in names for key in _ON[name]}}
    # Qwen3's own initialisation of the embedding; all others have ours, 1.0.
    models["qwen3, embedding 0.02"] = {**models["qk"], "embedding_init_method_std": 0.02}
    for cap in (15.0, 50.0):
        models[f"{KAIYUAN}, cap {cap:g}"] = {**models[KAIYUAN], "logits_soft_cap": cap}
    for name, gain in (("1", 1.0), ("1/sqrt(2L)", (2 * layers) ** -0.5)):
        models[f"{KAIYUAN}, gain {name}"] = {**models[KAIYUAN], "post_norm_initial_gain": gain}
    for base in ("plain", KAIYUAN):
        for name in ("embedding_norm", "fp32_residual", "fp32_head"):
            models[f"{base}, {name}"] = {**models[base], name: True}
    found: dict[str, dict[str, dict[str, Any]]] = {name: {"model": fields} for name, fields in models.items()}
    for base in ("plain", KAIYUAN):
        found[f"{base}, z_loss"] = {**found[base], "train": {"z_loss": 1e-4}}
    # Where QK-norm bounds the logits it has nothing to do, and is refused.
    found["plain, qk_clip"] = {**found["plain"], "optimizer": {"qk_clip_tau": 100.0}}
    return found


LONG_RUNS = ("plain", "qk", KAIYUAN, "qwen3, embedding 0.02")


@dataclass(frozen=True)
class Trial:
    network: str
    precision: str
    rate: float
    seed: int
    steps: int


def trials(size: Size, seeds: int) -> Iterator[Trial]:
    """All of them; whatever was done when the benchmark is stopped is a whole table with fewer seeds."""
    names = list(networks(size.model["num_layers"]))
    for seed in range(seeds):
        for rate in size.rates:
            for name in names:
                yield Trial(name, "fp16", rate, seed, size.steps)
        # BF16 has the range of FP32, and on a CPU the speed of FP16: one seed.
        for precision in ("fp32", "bf16") if seed == 0 else ("fp32",):
            for rate in size.rates:
                for name in names[:8]:
                    yield Trial(name, precision, rate, seed, size.steps)
        for name in LONG_RUNS if seed == 0 else ():
            yield Trial(name, "fp16", size.long_rate, seed, size.long_steps)


def prepare(folder: Path, size: Size) -> None:
    """Harvest English text, train a tokenizer, and make a phase of each part; once."""
    if (folder / "phases" / "heldout").exists():
        return
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    data(folder, "harvest", folder / "text")
    text = {part: folder / "text" / f"english.{part}.jsonl" for part in ("train", "heldout")}
    data(folder, "tokenizer", "train", "--input", text["train"], "--vocab-size", size.vocab_size, "--output", tokenizer)
    for part, path in text.items():
        data(folder, "preprocess", "--input", path, "--output-prefix", folder / part, "--tokenizer-model", tokenizer)
    corpora = {part: str(folder / f"{part}_text_document") for part in text}
    phases = [{"name": part, "order": "shuffle", "seed": 1, "datasets": [{"corpus": part}]} for part in text]
    (folder / "order.yaml").write_text(json.dumps({"corpora": corpora, "phases": phases}))
    data(folder, "curriculum", folder / "order.yaml", "--output", folder / "phases")


def data(folder: Path, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "data_tools", *map(str, arguments)], check=True)


def run_trial(trial: Trial, size: Size, folder: Path) -> Outcome:
    """Train, measure the held-out loss, and read the run's own metrics."""
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.config import RunConfig
    from megatron_kaiyuan.config.load import parse
    from megatron_kaiyuan.errors import UserError

    device = platform.activate(size.platform)
    from megatron_kaiyuan.train.hooks.events import ReportBadSteps, ReportLossScale
    from megatron_kaiyuan.train.hooks.metrics import Metrics
    from megatron_kaiyuan.train.hooks.monitoring import Monitoring
    from megatron_kaiyuan.train.hooks.qk_clip import QKClip
    from megatron_kaiyuan.train.loop import fit
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    began, ended = time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as run_dir:
        run = parse(RunConfig, recipe(trial, size, folder, run_dir), "benchmark")
        with single_process(device):
            session = start(run, device, Startup())
            kept = (ReportBadSteps, ReportLossScale, Monitoring, QKClip, Metrics)
            session.hooks = [hook for hook in session.hooks if isinstance(hook, kept)]
            try:
                fit(session)
            except UserError as error:  # too many bad steps in a row
                ended = str(error)
            held_out = held_out_loss(session, folder / "phases" / "heldout")
        rows = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return Outcome.of(dataclasses.asdict(trial), rows, held_out, ended, time.perf_counter() - began)


def recipe(trial: Trial, size: Size, folder: Path, run_dir: str) -> dict[str, Any]:
    tokens_per_step = size.batch * size.seq_length
    content: dict[str, Any] = {
        "run_dir": run_dir,
        "platform": size.platform,
        "model": {"preset": "kaiyuan-tiny", "vocab_size": size.vocab_size, **size.model},
        "data": {"phases": [{"path": str(folder / "phases" / "train"), "peak_lr": trial.rate}]},
        "train": {
            "seq_length": size.seq_length,
            "micro_batch_size": size.batch,
            "global_batch_size": size.batch,
            "train_tokens": trial.steps * tokens_per_step,
            "precision": trial.precision,
            "seed": trial.seed,
        },
        # The scale is to move within a short run: up every 50 good steps instead of 1,000.
        "optimizer": {
            "warmup_tokens": 10 * tokens_per_step,
            "loss_scale_window": 50,
            "schedule_tokens": trial.steps * tokens_per_step,
        },
        # Spikes are what is looked for: only a loss or gradient that is not finite is withheld.
        "faults": {"spike_zscore": None},
        # Bad steps are not run again to name a tensor: the monitor has the sizes.
        "monitor": {
            "log_every_steps": 1,
            "activations_every_steps": max(trial.steps // 15, 1),
            "overflow_capsules": 0,
        },
    }
    for section, fields in networks(size.model["num_layers"])[trial.network].items():
        content[section] |= fields
    return content


def held_out_loss(session: Any, phase: Path) -> tuple[float, float]:
    """Nats per token of at most 64 windows in the precision of the training, and the unigram entropy of these."""
    import torch

    from megatron_kaiyuan.data.stream import TokenStream
    from megatron_kaiyuan.evaluate.heldout import unigram_entropy

    run, device = session.run, session.state.platform.device
    stream, length = TokenStream([phase], run.model.vocab_size), run.train.seq_length
    windows = min(64, (stream.tokens - 1) // length)
    tokens, _ = stream.read_batch(np.arange(windows) * length, length + 1)
    losses = []
    with torch.no_grad():
        for batch in torch.from_numpy(tokens).to(device).split(run.train.micro_batch_size):
            positions = torch.arange(length, device=device).expand(len(batch), -1)
            losses.append(session.state.models[0](batch[:, :-1], positions, None, labels=batch[:, 1:]).float())
    return float(torch.cat(losses).mean()), unigram_entropy(np.bincount(tokens[:, 1:].ravel()))


def _work(task: tuple[Trial, Size, Path]) -> Outcome:
    import torch

    torch.set_num_threads(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        return run_trial(*task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/fp16_stability"))
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="trials at once, each with one thread")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where table and figures go")
    given = parser.parse_args()
    size, folder = SIZES[given.size], given.folder / given.size
    done_file = folder / "trials.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not given.report:
        prepare(folder, size)
        done = {outcome.trial for outcome in Outcome.read(done_file)}
        tasks = [(trial, size, folder) for trial in trials(size, given.seeds) if dataclasses.astuple(trial) not in done]
        # New processes now and then: gloo's groups keep their threads, which poll, when a trial has ended.
        context = multiprocessing.get_context("spawn")
        with context.Pool(given.jobs, maxtasksperchild=4) as pool, done_file.open("a") as file:
            for number, outcome in enumerate(pool.imap(_work, tasks), 1):
                print(outcome.to_json(), file=file, flush=True)
                print(f"{outcome.summary()}; {len(tasks) - number} to go", flush=True)
    print(write_report(Outcome.read(done_file), given.results, given.size))


if __name__ == "__main__":
    main()
