"""A small run folder as training, curriculum and evaluation leave it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

TOKENS_PER_STEP = 4096


def step_row(step: int, loss: float | None = None) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": step * TOKENS_PER_STEP,
        "phase": "shuffled" if step <= 60 else "rising",
        "phase_tokens": step * TOKENS_PER_STEP,
        "loss": 2.0 + 7.0 * math.exp(-step / 40) + 0.2 * math.sin(step * 1.7) if loss is None else loss,
        "lr": 1e-3 * min(step / 10, 1, max(0.02, (100 - step) / 40)),
        "grad_norm": None if step == 30 else 1 + 20 / step,
        "loss_scale": 65536.0 if step < 30 else 32768.0,
        "tokens_per_second": 5000 + 300 * math.cos(step),
        "skipped_steps": int(step >= 30),
        "time": 1_750_000_000.0 + step,
    }


def monitor_row(step: int) -> dict[str, Any]:
    """Activations that grow with layer and step; at step 40 one is not finite, and its step was skipped."""

    def tensor(size: float, layers: int = 4) -> dict[str, list[float | None]]:
        peaks: list[float | None] = [size * (layer + 1) * step for layer in range(layers)]
        if step == 40 and layers > 1:
            peaks[-1] = None
        bits = [None if peak is None else math.log2(65504 / peak) for peak in peaks]
        means = [None if peak is None else peak / 10 for peak in peaks]
        return {"l1": means, "rms": means, "max": peaks, "headroom_bits": bits}

    logits = {name: values for name, values in tensor(0.1).items() if name in ("max", "headroom_bits")}
    activations = {
        "embedding": tensor(4.0, 1),
        **{"query": tensor(0.2), "attention_logits": logits, "mlp_output": tensor(2.0), "residual": tensor(1.0)},
        **{"logits": tensor(3.0, 1), "capped_logits": tensor(0.2, 1)},
    }
    kinds = {"embedding": 1, "qkv": 4, "head": 1}
    gradients = {name: {"norm": [0.1] * places, "max": [0.01] * places} for name, places in kinds.items()}
    ratios = None if step == 40 else {name: [1e-3 / step] * places for name, places in kinds.items()}
    figures = {"activations": activations, "gradients": gradients, "update_to_weight": ratios}
    tokens = step * TOKENS_PER_STEP
    return {"event": "monitor", "step": step, "tokens": tokens, **figures, "time": 1_750_000_000.0 + step}


def write_metrics(run_dir: Path) -> None:
    """100 steps; killed at step 57 after the checkpoint of step 50, the last line torn."""
    lines = [json.dumps({"event": "start", "step": 0, "time": 1_750_000_000.0})]
    lines += [json.dumps(step_row(step, loss=99.0 if step > 50 else None)) for step in range(1, 57)]
    for step in (50, 40, 30, 20, 10):
        lines.insert(step, json.dumps(monitor_row(step)))
    lines.insert(56, json.dumps({"event": "checkpoint", "step": 50, "time": 1_750_000_050.0}))
    # Void: the restart goes back behind it.
    lines.append(json.dumps({**monitor_row(50), "step": 55}))
    lines.append(json.dumps(step_row(57))[:40])
    lines.append(json.dumps({"event": "resume", "step": 50, "time": 1_750_000_100.0}))
    lines += [json.dumps(step_row(step)) for step in range(51, 101)]
    lines += [json.dumps(monitor_row(step)) for step in range(60, 101, 10)]
    lines.append(json.dumps({"event": "stop", "step": 100, "time": 1_750_000_200.0}))
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 101, "tok', encoding="utf-8")


def write_phase(
    folder: Path,
    name: str,
    order: str,
    tokens: int,
    quantiles: dict[str, tuple[float, float] | None],
    best: float = 1.0,
    recipe: dict[str, Any] | None = None,
) -> Path:
    """A phase whose datasets' mean quality goes from one quantile to another; the first has none in its first bucket.

    Of a scored dataset the best deciles are taken once, up to the fraction `best`; a dataset with None has no score.
    The table of exposure follows `groups`, not the tokens along the phase.
    """
    buckets = 20
    folder.mkdir(parents=True)
    datasets, exposure = {}, {}
    for index, (dataset, ends) in enumerate(quantiles.items()):
        first, last = ends or (0.0, 0.0)
        means: list[float | None] = [first + (last - first) * bucket / (buckets - 1) for bucket in range(buckets)]
        share = [tokens // buckets // len(quantiles) for _ in range(buckets)]
        if index == 0:
            means[0], share[0] = None, 0
        if ends is None:
            means = [None] * buckets
        score = None if ends is None else "score"
        datasets[dataset] = {"score": score, "tokens": share, "mean_quantile": means}
        exposure[dataset] = {"score": score, "groups": groups(best, scored=ends is not None)}
    edges = [tokens * (bucket + 1) // buckets for bucket in range(buckets)]
    profile = {"version": 2, "tokens": edges, "datasets": datasets, "exposure": exposure}
    (folder / "profile.json").write_text(json.dumps(profile))
    manifest = {"format": "kaiyuan-phase", "version": 2, "name": name, "order": order, "tokens": tokens}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "recipe": recipe or {}}))
    return folder


def groups(best: float, scored: bool = True) -> list[dict[str, int]]:
    """A corpus of 1,000 documents of 10 tokens, of which `best` (in hundredths) is taken, the best ones if scored."""
    left, parts = round(1000 * best), []
    for _ in range(10 if scored else 1):
        there = 100 if scored else 1000
        taken = min(left, there)
        left -= taken
        parts.append({"documents": taken, "tokens": 10 * taken, "corpus_documents": there, "corpus_tokens": 10 * there})
    return parts[::-1]


def write_config(run_dir: Path, phases: list[Path]) -> None:
    config = {
        "run_dir": str(run_dir),
        "model": {"preset": "kaiyuan-tiny"},
        "data": {"phases": [{"path": str(phase), "peak_lr": 1e-3} for phase in phases]},
        "train": {"seq_length": 256, "micro_batch_size": 4, "global_batch_size": 16},
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))


def evaluation() -> dict[str, Any]:
    def one(nats: float, bits: float, accuracy: float) -> dict[str, Any]:
        domains = {
            "code": {"tokens": 60_000, "nats_per_token": nats - 0.25, "unigram_entropy": 6.654},
            "<b>english": {"tokens": 40_000, "nats_per_token": nats + 0.5, "unigram_entropy": 6.987},
        }
        held_out = {"tokens": 100_000, "nats_per_token": nats, "unigram_entropy": 6.801, "seq_length": 256}
        tasks = {
            "heldout_rolling": {"bits_per_byte": bits},
            "heldout_continuation": {"acc": accuracy, "acc_norm": accuracy + 0.011},
        }
        return {"path": "export", "held_out": {**held_out, "domains": domains}, "tasks": tasks, "seconds": 9.5}

    items = {"heldout_rolling": 45, "heldout_continuation": 120}
    return {"model": one(5.123, 1.912, 0.613), "baseline": one(9.014, 3.211, 0.263), "items": items, "seed": 1234}


def write_run(root: Path) -> Path:
    run_dir = root / "quickstart"
    write_metrics(run_dir)
    first = write_phase(
        root / "phases" / "one", "shuffled", "shuffle", 60 * TOKENS_PER_STEP,
        {"code": (0.5, 0.52), "english": (0.42, 0.4), "mathematics": None},
    )  # fmt: skip
    second = write_phase(
        root / "phases" / "two", "rising", "curriculum", 45 * TOKENS_PER_STEP,
        {"code": (0.3, 0.9), "mathematics": (0.4, 0.95)}, best=0.25,
    )  # fmt: skip
    write_config(run_dir, [first, second])
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation()))
    return run_dir


ROW = {
    "step": 7,
    "tokens": 7000,
    "phase": "first",
    "loss": 5.25,
    "loss_mean": 5.5,
    "loss_steps": 10,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "loss_scale": 1.0,
    "seconds_per_step": 2.0,
    "tokens_per_second": 500.0,
}
