"""A run that is small enough for seconds: real files, real processes."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.curriculum.build import build_recipe
from megatron_kaiyuan import platform
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.files import checksum
from tests.helpers.processes.rank_server import Started, run, started
from tests.helpers.training.tiny_model import write_tokenizer

if TYPE_CHECKING:
    from megatron_kaiyuan.train.session import Session

VOCAB = 256
SEQ_LENGTH = 64
TOKENS_PER_STEP = 8 * SEQ_LENGTH
STEPS = 20
NEVER = "checkpoint.save_every_steps=100000"


def write_corpus(
    prefix: Path, documents: int = 400, vocab: int = VOCAB, seed: int = 0, fingerprint: str = "xxh3:0"
) -> None:
    """Documents that a network can learn: each id follows from the one before by a small random step.

    `fingerprint` is of the tokenizer that is said to have made it.
    """
    drawn = np.random.default_rng(seed)
    lengths = drawn.integers(20, 200, documents)
    tokens = np.cumsum(drawn.integers(0, 4, lengths.sum())) % vocab
    tokenizer = {"path": "tokenizer.json", "fingerprint": fingerprint, "vocab_size": vocab, "eod_id": 0}
    scores = {"score": drawn.random(documents).tolist()}
    with CorpusWriter(prefix, tokenizer, ["score"]) as writer:
        names = ["test"] * documents
        writer.add(Documents(tokens.astype(np.int64), lengths.tolist(), [1] * documents, names, names, scores))


def write_recipe(folder: Path, save_every_steps: int = 10, documents: int = 400, fingerprint: str = "xxh3:0") -> Path:
    """A corpus, its two phases and a training recipe for 20 steps, two of them in the second phase of 400 documents."""
    write_corpus(folder / "corpus" / "text", documents, fingerprint=fingerprint)
    order = {
        "corpora": {"text": str(folder / "corpus" / "text")},
        "phases": [
            {"name": "first", "order": "shuffle", "seed": 1, "datasets": [{"corpus": "text", "keep": "random 0.21"}]},
            {
                "name": "second",
                "order": "curriculum",
                "seed": 2,
                "datasets": [{"corpus": "text", "score": "score", "keep": "top 0.3"}],
            },
        ],
    }
    (folder / "order.yaml").write_text(yaml.safe_dump(order))
    build_recipe(folder / "order.yaml", (), folder / "phases", None, 1)
    recipe = {
        "run_dir": str(folder / "run"),
        "platform": "cpu",
        "model": {
            "preset": "kaiyuan-tiny",
            "num_layers": 2,
            "hidden_size": 64,
            "ffn_hidden_size": 128,
            "kv_channels": 16,
            "vocab_size": VOCAB,
        },
        "data": {
            "phases": [
                {"path": str(folder / "phases" / "first"), "peak_lr": 5e-3},
                {"path": str(folder / "phases" / "second"), "peak_lr": 3e-3, "final_lr": 6e-4},
            ]
        },
        "train": {
            "seq_length": SEQ_LENGTH,
            "micro_batch_size": 2,
            "global_batch_size": 8,
            "train_tokens": STEPS * TOKENS_PER_STEP,
        },
        "optimizer": {"warmup_tokens": 4 * TOKENS_PER_STEP},
        "checkpoint": {"save_every_steps": save_every_steps},
        "monitor": {"log_every_steps": 1},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_recipe_and_tokenizer(folder: Path) -> None:
    """A recipe that saves every 2 steps, and the tokenizer that is said to have made its corpus."""
    write_tokenizer(folder / "tokenizer")
    write_recipe(folder, 2, fingerprint=checksum(folder / "tokenizer" / "tokenizer.json"))


def _torchrun(processes: int, program: Sequence[object], *options: str) -> list[object]:
    """The program that starts ranks of another one (`-m module` or a file, and its arguments) as fresh processes."""
    launcher = ["-m", "megatron_kaiyuan.cluster.torchrun", "--standalone", *options]
    return [*launcher, "--nproc-per-node", processes, *program]


def launch(processes: int, program: Sequence[object], *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program under torchrun, a fork itself, to its end; `options` are torchrun's."""
    return run(1, _torchrun(processes, program, *options), imported="torch")


def train(
    processes: int, recipe: Path, *overrides: str, largest_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the training command to its end; no file can grow beyond `largest_file` bytes."""
    return run(processes, ["-m", "megatron_kaiyuan.cli", "train", recipe, *overrides], largest_file)


def at_work(processes: int, recipe: Path, *overrides: str) -> contextlib.AbstractContextManager[Started]:
    """The training command at work for the body of a `with`."""
    return started(processes, ["-m", "megatron_kaiyuan.cli", "train", recipe, *overrides])


def train_on_bad_machine(
    processes: int, faults: list[dict], recipe: Path, *overrides: str
) -> subprocess.CompletedProcess[str]:
    """Run the training command to its end with faults, see faulty_train.py."""
    return run(processes, faulty(faults, recipe, *overrides))


def faulty(faults: list[dict], recipe: Path, *overrides: str) -> list[object]:
    """The program of `train_on_bad_machine`."""
    return ["-m", "tests.helpers.training.faulty_train", json.dumps(faults), recipe, *overrides]


def succeed(processes: int, recipe: Path, *overrides: str) -> str:
    """Run the training command, which must succeed; its standard output."""
    done = train(processes, recipe, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fit_here(recipe: Path, *overrides: str, prepare: Callable[[Session], object] = lambda session: None) -> Session:
    """Train in this process, alone and without its signal handlers, to the end; the session as it was left."""
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.train.hooks.stop import StopOnSignal
    from megatron_kaiyuan.train.loop import fit
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    with single_process(device):
        session = start(load_run(recipe, overrides), device, Startup())
        session.hooks = [hook for hook in session.hooks if not isinstance(hook, StopOnSignal)]
        prepare(session)
        fit(session)
    return session


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl that tell of one kind of event."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("event") == name]


def metrics(run_dir: Path) -> dict[int, dict]:
    """Rows of metrics.jsonl by step; a step that was taken twice counts as it was taken last."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "loss" in row}


def losses(run_dir: Path) -> list[float]:
    rows = metrics(run_dir)
    return [rows[step]["loss"] for step in sorted(rows)]


def start_from(source: Path, step: int, run_dir: Path) -> Path:
    """A run folder that holds one step of another run, so that the next start resumes from it."""
    shutil.copytree(source / "checkpoints" / f"step_{step}", run_dir / "checkpoints" / f"step_{step}")
    return run_dir


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | Started) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def took_steps(run_dir: Path, number: int) -> Callable[[], bool]:
    return lambda: (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= number


def numbers(row: dict[str, Any], path: str = "") -> dict[str, float]:
    """Every figure of a row by its place."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found.update(numbers(value, f"{path}{name}."))
        elif isinstance(value, list):
            found.update({f"{path}{name}.{place}": number for place, number in enumerate(value)})
    return found


def batch(kind: str, first: int, last: int | None = None, **more: Any) -> dict[str, Any]:
    """A fault in batches first to last of the stream, counted from 1."""
    return {"kind": kind, "from": (first - 1) * TOKENS_PER_STEP, "to": (last or first) * TOKENS_PER_STEP, **more}
