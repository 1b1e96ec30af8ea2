"""What the activation monitor costs: steps that are watched against steps that are not, in the same process.

    python -m benchmarks.monitor --rounds 9

Real training steps (FP32, AdamW, one process) on random tokens, with all hooks of a run but checkpoints. A round is one
step that is watched and two that are not, one before and one after it, whose mean it is compared with. Printed is the
median round: a watched step over one that is not, which is the cost at k = 1, and a tenth of what that is more than 1,
which is the cost at k = 10; by the clock, and by CPU seconds, which others on the machine disturb less. At k = 0 the
hook does not exist. Then k = 10 and k = 0 as whole runs, in turns.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

LARGER = {"num_layers": 6, "hidden_size": 320, "ffn_hidden_size": 896, "kv_channels": 80}
SHAPES: dict[str, dict[str, Any]] = {"kaiyuan-tiny": {}, "10 M": LARGER}


def write_tokens(folder: Path, vocab_size: int, tokens: int) -> Path:
    """A phase of one corpus of random ids."""
    import yaml

    from data_tools.corpora.corpus import CorpusWriter, Documents
    from data_tools.curriculum.build import build_recipe

    lengths = [1000] * (tokens // 1000 + 1)
    ids = np.random.default_rng(0).integers(0, vocab_size, sum(lengths))
    names, ones = ["random"] * len(lengths), [1] * len(lengths)
    tokenizer = {"path": "tokenizer.json", "fingerprint": "xxh3:0", "vocab_size": vocab_size, "eod_id": 0}
    with CorpusWriter(folder / "corpus", tokenizer, []) as writer:
        writer.add(Documents(ids, lengths, ones, names, names, {}))
    order = {
        "corpora": {"random": str(folder / "corpus")},
        "phases": [{"name": "only", "order": "shuffle", "seed": 1, "datasets": [{"corpus": "random"}]}],
    }
    (folder / "order.yaml").write_text(yaml.safe_dump(order))
    build_recipe(folder / "order.yaml", (), folder / "phases", None, 1)
    return folder / "phases" / "only"


@contextmanager
def session_of(
    shape: dict[str, Any],
    folder: Path,
    seq_length: int,
    batch: int,
    steps: int,
    precision: str = "fp32",
    watched_every: int = 1,
    on: str = "cpu",
    micro_batch: int = 4,
    changes: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """A session that has not trained yet, without checkpoints and signal handlers.

    Args:
        watched_every: steps from one that the monitor watches to the next; 0: none.
        on: the platform.
        changes: sections of the recipe besides.
    """
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.config import RunConfig
    from megatron_kaiyuan.config.load import parse

    device = platform.activate(on)
    model = {"preset": "kaiyuan-tiny", "vocab_size": 8192, **shape}
    phase = write_tokens(folder, model["vocab_size"], (steps * batch + 1) * seq_length)
    train = {
        "seq_length": seq_length,
        "micro_batch_size": min(batch, micro_batch),
        "global_batch_size": batch,
        "precision": precision,
    }
    data = {"phases": [{"path": phase, "peak_lr": 1e-3}]}
    content = {
        "run_dir": folder / "run",
        "platform": on,
        "model": model,
        "data": data,
        "train": train,
        **(changes or {}),
    }
    content["monitor"] = {"log_every_steps": 1_000_000, "activations_every_steps": watched_every}
    from megatron_kaiyuan.train.hooks.events import ReportBadSteps, ReportLossScale
    from megatron_kaiyuan.train.hooks.monitoring import Monitoring
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    with single_process(device):
        session = start(parse(RunConfig, content, "benchmark"), device, Startup())
        session.hooks = [h for h in session.hooks if isinstance(h, ReportBadSteps | ReportLossScale | Monitoring)]
        yield session


Cost: TypeAlias = NDArray[np.float64]  # seconds by the clock, CPU seconds


def train(session: Any, steps: int, watched_every: int) -> Cost:
    """Train some steps, of which each `watched_every`th (0: none) has the monitor's hook; what they cost."""
    from megatron_kaiyuan.train.hooks.monitoring import Monitoring
    from megatron_kaiyuan.train.loop import fit

    everything = session.hooks
    began = np.array([time.perf_counter(), time.process_time()])
    for step in range(1, steps + 1):
        is_watched = watched_every and step % watched_every == 0
        session.hooks = [hook for hook in everything if is_watched or not isinstance(hook, Monitoring)]
        session.end = session.state.progress.tokens + session.run.train.tokens_per_step
        fit(session)
    session.hooks = everything
    return np.array([time.perf_counter(), time.process_time()]) - began


def measure(name: str, seq_length: int, batch: int, rounds: int, blocks: int) -> None:
    steps = 3 * (rounds + 1) + 20 * blocks
    with (
        tempfile.TemporaryDirectory() as folder,
        session_of(SHAPES[name], Path(folder), seq_length, batch, steps) as session,
    ):
        parameters = sum(parameter.numel() for parameter in session.state.network.parameters())
        ratios, plain = [], []
        train(session, 3, 2)
        for _ in range(rounds):
            before, watched, after = (train(session, 1, every) for every in (0, 1, 0))
            plain += [before, after]
            ratios.append(2 * watched / (before + after))
        seconds, cpu_seconds = np.median(plain, axis=0)
        print(
            f"{name}: {parameters / 1e6:.1f} M parameters, {batch} x {seq_length} tokens, {seconds:.3f} s a step "
            f"({cpu_seconds:.3f} CPU seconds); {rounds} rounds"
        )
        print_ratios("k = 1", ratios)
        print_ratios("k = 10, from that", [1 + (ratio - 1) / 10 for ratio in ratios])
        if blocks:
            pairs = [(train(session, 10, 10), train(session, 10, 0)) for _ in range(blocks)]
            print_ratios(f"k = 10, {blocks} runs of 10 steps each", [one / other for one, other in pairs])


def print_ratios(what: str, ratios: list[Cost]) -> None:
    middle, least, most = np.median(ratios, axis=0), np.min(ratios, axis=0), np.max(ratios, axis=0)
    for unit, *numbers in zip(("by the clock", "by CPU seconds"), middle, least, most, strict=True):
        print("  {}: {:.4f} of k = 0 {} ({:.3f} to {:.3f})".format(what, numbers[0], unit, *numbers[1:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="one of them only")
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--blocks", type=int, default=3, help="runs of 10 steps with k = 10 and with k = 0")
    given = parser.parse_args()
    import torch

    from megatron_kaiyuan import __version__

    threads = torch.get_num_threads()
    print(f"megatron_kaiyuan {__version__}, torch {torch.__version__}, {os.cpu_count()} cores, {threads} threads")
    for name in [given.shape] if given.shape else SHAPES:
        measure(name, given.seq_length, given.batch, given.rounds, given.blocks)


if __name__ == "__main__":
    main()
