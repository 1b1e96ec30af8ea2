"""`kaiyuan plan` beside published training runs: planned over published speed, and their layout beside the plan's best.

    python -m benchmarks.published_runs [--mfu 0.28]

On paper, in seconds: nothing is trained. A team's network is written as ours with the additions off. Sharded weights
(FSDP) are taken for data parallelism with the distributed optimizer, both overlaps on. All runs are in BF16.
"theirs/best" is the planned speed of the team's layout over that of the plan's best one that fits. What a source does
not give is assumed, and the last lines say so.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.layouts import legal_layouts
from megatron_kaiyuan.planning.memory import fullest_stage
from megatron_kaiyuan.planning.plan import USABLE
from megatron_kaiyuan.planning.speed import flops_per_token, speed
from megatron_kaiyuan.platform.figures import DEVICES, Device

LLAMA_8B = {
    **{"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32},
    **{"num_query_groups": 8, "kv_channels": 128, "vocab_size": 128256},
}


def olmo(layers: int, hidden: int, heads: int, ffn: int) -> dict[str, Any]:
    """OLMo's networks: no grouped queries, 100,352 rows of vocabulary."""
    sizes = {"num_layers": layers, "hidden_size": hidden, "ffn_hidden_size": ffn, "kv_channels": hidden // heads}
    return {**sizes, "num_attention_heads": heads, "num_query_groups": heads, "vocab_size": 100352}


@dataclass(frozen=True)
class Published:
    """One run.

    Attributes:
        tokens: published tokens a second of a device; None: `tflops` is what is published.
        layout: fields of `parallel` as the team had them.
        assumed: what the source does not say.
    """

    name: str
    source: str
    device: str
    gpus: int
    batch: int
    seq_length: int
    tokens: float | None = None
    tflops: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = 1
    assumed: str = ""


TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, with torch.compile"
OLMO = "OLMo-core, README of versions 1.0.6 to 1.2.0"
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
RUNS = (
    Published(
        "Puro-2B, PP 2", "arXiv 2608.27370", "h100", 24, 1536, 4096, tflops=238,
        layout={"pipeline_model_parallel_size": 2}, assumed="device, batch",
    ),
    Published(
        "Puro-2B, PP 4", "arXiv 2608.27370", "h100", 96, 1536, 4096, tflops=192,
        layout={"pipeline_model_parallel_size": 4}, assumed="device, batch",
    ),
    Published("torchtitan 8B", TITAN, "h100", 8, 16, 8192, tokens=6667, model=LLAMA_8B, micro_batch=2),
    Published("torchtitan 8B", TITAN, "h100", 128, 256, 8192, tokens=6514, model=LLAMA_8B, micro_batch=2),
    Published(
        "torchtitan 8B", "torchtitan, docs/performance.md of 2024", "a100", 64, 64, 8192, tokens=2973, model=LLAMA_8B,
    ),
    Published(
        "TinyLlama 1.1B", "github.com/jzhang38/TinyLlama", "a100", 16, 1024, 2048, tokens=24000, micro_batch=8,
        model={
            **{"num_layers": 22, "hidden_size": 2048, "ffn_hidden_size": 5632, "num_attention_heads": 32},
            **{"num_query_groups": 4, "kv_channels": 64, "vocab_size": 32000},
        },
    ),
    Published("OLMo 1B", OLMO, "h100", 64, 512, 4096, tokens=45500, model=olmo(16, 2048, 16, 8192), micro_batch=4,
              assumed="devices, batch"),
    Published("OLMo 7B", OLMO, "h100", 64, 1024, 4096, tokens=9850, model=olmo(32, 4096, 32, 11008), micro_batch=2,
              assumed="devices, batch"),
    Published("OLMo 13B", OLMO, "h100", 64, 2048, 4096, tokens=4500, model=olmo(40, 5120, 40, 13824), micro_batch=1,
              assumed="devices, batch"),
    Published(
        "SmolLM3 3B", "huggingface.co/blog/smollm3; 14k tokens/s, 29.4 % (tzafon.ai/blog/breaking-40k-tokens)", "h100",
        384, 576, 4096, tokens=14000, micro_batch=3, layout={"tensor_model_parallel_size": 2},
        model={
            **{"num_layers": 36, "hidden_size": 2048, "ffn_hidden_size": 11008, "num_attention_heads": 16},
            **{"num_query_groups": 4, "kv_channels": 128, "vocab_size": 128256},
        },
    ),
)  # fmt: skip


def recipe_of(published: Published, folder: Path) -> RunConfig:
    """The run as a recipe of ours."""
    plain = {"sandwich_norm": False, "qk_layernorm": False, "logits_soft_cap": None} if published.model else {}
    content = {
        "run_dir": str(folder / "run"),
        "model": {
            "preset": "kaiyuan-2b",
            "max_position_embeddings": published.seq_length,
            **plain,
            **published.model,
        },
        "data": {"phases": [{"path": str(folder / "phase"), "peak_lr": 1e-3}]},
        "train": {
            "seq_length": published.seq_length,
            "global_batch_size": published.batch,
            "micro_batch_size": published.micro_batch,
            "precision": "bf16",
        },
        "parallel": {"overlap_grad_reduce": True, "overlap_param_gather": True, **published.layout},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_run(path)


def best_layout(run: RunConfig, gpus: int, device: Device, mfu: float) -> tuple[str, float]:
    """The fastest layout of the plan that fits, and its tokens a second."""
    usable = device.memory_bytes(gpus) * USABLE
    found = []
    for layout in legal_layouts(run, gpus):
        if fullest_stage(layout, gpus, device).device.total <= usable and (fast := speed(layout, gpus, device, mfu)):
            parallel = layout.parallel
            name = f"TP {parallel.tensor_model_parallel_size} PP {parallel.pipeline_model_parallel_size}"
            found.append((fast.tokens_per_second, name))
    if not found:
        raise UserError("no layout fits")
    tokens, name = max(found, key=lambda one: (round(one[0] / max(found)[0], 3), -len(one[1])))
    return name, tokens


def rows(mfu: float | None) -> Iterator[tuple[list[str], float, float]]:
    for published in RUNS:
        device = DEVICES[published.device]
        assumed = mfu if mfu is not None else device.assumed_mfu
        with tempfile.TemporaryDirectory() as folder:
            run = recipe_of(published, Path(folder))
        theirs = speed(run, published.gpus, device, assumed)
        assert theirs is not None
        per_token, peak = flops_per_token(run), device.half_tflops
        tokens = published.tokens or (published.tflops or 0) * 1e12 / per_token
        planned = theirs.tokens_per_second / published.gpus
        try:
            name, best = best_layout(run, published.gpus, device, assumed)
        except UserError:
            name, best = "none fits", float("nan")
        shape = f"TP {run.parallel.tensor_model_parallel_size} PP {run.parallel.pipeline_model_parallel_size}"
        reached = tokens * per_token / (peak or 0) / 1e12
        ratio, chosen = planned / tokens, theirs.tokens_per_second / best
        row = [published.name, f"{published.gpus} x {device.name}", shape, f"{tokens:,.0f}", f"{reached:.1%}"]
        row += [f"{planned:,.0f}", f"{ratio:.2f}", name, f"{chosen:.2f}"]
        yield row, ratio, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mfu", type=float, help="of a stage at work; default: what is assumed of the device")
    given = parser.parse_args()
    head = ["run", "devices", "layout", "tokens/s", "MFU, causal", "planned", "ratio", "plan's best", "theirs/best"]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    ratios = []
    for row, ratio, _ in rows(given.mfu):
        print("| " + " | ".join(row) + " |", flush=True)
        ratios.append(ratio)
    print(f"planned over published: {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}")
    for published in RUNS:
        note = f"; assumed: {published.assumed}" if published.assumed else ""
        print(f"{published.name}, {published.gpus} x {published.device}: {published.source}{note}")


if __name__ == "__main__":
    main()
