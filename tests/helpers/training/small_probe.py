"""A probe on a small corpus with real windows of it."""

from __future__ import annotations

from pathlib import Path

import yaml

from data_tools.windows.cut import cut_windows
from data_tools.windows.options import WindowOptions
from tests.helpers.training.small_run import write_corpus

SEEDS = 2


def write_probe(folder: Path, vocab: int = 256, fingerprint: str = "xxh3:0", **fields: object) -> Path:
    """A scored corpus, its windows as `kaiyuan-data quantile` cuts them, a recipe and `probes.yaml`; its path."""
    write_corpus(folder / "corpora" / "text", documents=400, fingerprint=fingerprint)
    for seed, domain in enumerate(("code", "prose"), 10):
        write_corpus(folder / "held_out" / domain, documents=12, seed=seed, fingerprint=fingerprint)
    options = WindowOptions(["score"], windows=["0-0.2", "0.3-0.5", "0.6-0.8"], samples=None)
    cut_windows([f"text={folder / 'corpora' / 'text'}"], options, folder / "windows", threads=1)
    shape = {"preset": "kaiyuan-tiny", "num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 64, "kv_channels": 8}
    recipe = {
        "run_dir": "unused",
        "platform": "cpu",
        "model": {**shape, "vocab_size": vocab},
        "data": {"phases": [{"path": "unused", "peak_lr": 1e-2, "final_lr": 1e-3}]},
        "train": {"seq_length": 64, "micro_batch_size": 4, "global_batch_size": 8},
    }
    (folder / "probe_network.yaml").write_text(yaml.safe_dump(recipe))
    probes = {
        "recipe": str(folder / "probe_network.yaml"),
        "windows": str(folder / "windows" / "windows.json"),
        "held_out": {domain: str(folder / "held_out" / domain) for domain in ("code", "prose")},
        "seeds": SEEDS,
        "main_run": {"recipe": str(folder / "probe_network.yaml"), "tokens": 10_000_000},
        **fields,
    }
    path = folder / "probes.yaml"
    path.write_text(yaml.safe_dump(probes))
    return path
