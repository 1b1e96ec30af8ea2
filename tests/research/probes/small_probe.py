"""A probe on small corpora: windows of one dataset whose chains of tokens are easier or harder to predict."""

from __future__ import annotations

from pathlib import Path

import yaml

from data_tools.curriculum.build import build_recipe
from megatron_kaiyuan.files import write_sealed_json
from tests.train.small_run import write_corpus

PARTS = 2


def write_probe(folder: Path, quantiles: tuple[float, ...] = (0.0, 0.3, 0.6), **fields: object) -> Path:
    """Corpora, windows as `kaiyuan-data quantile` lists them, a recipe and `probes.yaml`; its path."""
    write_corpus(folder / "corpora" / "text", documents=400)
    for seed, domain in enumerate(("code", "prose"), 10):
        write_corpus(folder / "held_out" / domain, documents=12, seed=seed)
    phases = [
        {"name": name, "order": "shuffle", "seed": 1, "tokens": 3000, "datasets": [{"corpus": "text", **kept}]}
        for quantile in quantiles
        for name, kept in _parts(quantile)
    ]
    order = {"corpora": {"text": str(folder / "corpora" / "text")}, "phases": phases}
    (folder / "order.yaml").write_text(yaml.safe_dump(order))
    build_recipe(folder / "order.yaml", (), folder / "windows", None, 1)
    windows = [
        {
            "name": f"text/{quantile:.2f}",
            "dataset": "text",
            "score": "score",
            "quantile": quantile,
            "width": 0.2,
            "phases": [name for name, _ in _parts(quantile)],
            "tokens": 3000,
            "documents": 30,
            "portrait": {"bytes": 110.5, "groups": {"test": 1.0}},
        }
        for quantile in quantiles
    ]
    listed = {"format": "kaiyuan-windows", "version": 1, "windows": windows}
    write_sealed_json(folder / "windows" / "windows.json", listed)
    shape = {"preset": "kaiyuan-tiny", "num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 64, "kv_channels": 8}
    recipe = {
        "run_dir": "unused",
        "platform": "cpu",
        "model": {**shape, "vocab_size": 256},
        "data": {"phases": [{"path": "unused", "peak_lr": 1e-2, "final_lr": 1e-3}]},
        "train": {"seq_length": 64, "micro_batch_size": 4, "global_batch_size": 8},
    }
    (folder / "probe_network.yaml").write_text(yaml.safe_dump(recipe))
    probes = {
        "recipe": str(folder / "probe_network.yaml"),
        "output": str(folder / "probes"),
        "windows": str(folder / "windows" / "windows.json"),
        "held_out": {domain: str(folder / "held_out" / domain) for domain in ("code", "prose")},
        "seeds": PARTS,
        "main_run": {"recipe": str(folder / "probe_network.yaml"), "tokens": 10_000_000},
        **fields,
    }
    path = folder / "probes.yaml"
    path.write_text(yaml.safe_dump(probes))
    return path


def _parts(quantile: float) -> list[tuple[str, dict[str, object]]]:
    """Two parts of a window: halves of it, of different documents."""
    halves = ((quantile, quantile + 0.1), (quantile + 0.1, quantile + 0.2))
    return [
        (f"text_{100 * quantile:03.0f}_{number}", {"score": "score", "keep": f"window {low:.2f}-{high:.2f}"})
        for number, (low, high) in enumerate(halves, 1)
    ]
