"""Published training runs, with their sources, for `python -m benchmarks.published_runs`.

A team's network is written as ours with the additions off. Sharded weights (FSDP, ZeRO) are taken for data parallelism
with the distributed optimizer. All runs are in BF16. MPT's networks, which have no gate, get a gated
MLP of as many FLOPs.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.planning.calibrate import products_mfu
from megatron_kaiyuan.planning.speed import flops_per_token, speed
from megatron_kaiyuan.platform.datasheets import DEVICES, Device

LAYOUTS = Path(__file__).with_name("published_layouts.csv")
LAYOUTS_SOURCE = (
    "arXiv 2311.05610, tables of runs with FlashAttention 2 and its RMSNorm kernel, without recomputation "
    "(github.com/Aleph-Alpha/NeurIPS-WANT-submission-efficient-parallelization-layouts)"
)


def network(
    layers: int, hidden: int, ffn: int, heads: int, vocab: int, groups: int | None = None, size: int = 128
) -> dict[str, Any]:
    """Fields of `model`; groups None: as many as heads."""
    return {
        **{"num_layers": layers, "hidden_size": hidden, "ffn_hidden_size": ffn, "num_attention_heads": heads},
        **{"num_query_groups": groups or heads, "kv_channels": size, "vocab_size": vocab},
    }


LLAMA_7B = network(32, 4096, 11008, 32, 32000)
LLAMA_8B = network(32, 4096, 14336, 32, 128256, groups=8)
MPT = {
    "1B": network(24, 2048, 5440, 16, 50368),
    "3B": network(32, 2560, 6848, 20, 50368),
    "7B": network(32, 4096, 10944, 32, 50368),
    "13B": network(40, 5120, 13632, 40, 50368),
}
ALEPH_ALPHA = {
    "13B": network(40, 5120, 13824, 40, 128000),
    "30B": network(60, 6656, 17920, 52, 128000),
    "65B": network(80, 8192, 22016, 64, 128000),
}


@dataclass(frozen=True)
class Published:
    """One run.

    Attributes:
        tokens: published tokens a second of a device; None: `tflops` is what is published.
        layout: fields of `parallel` as the team had them.
        overlap: gradients, weights and collectives of tensor parallelism travel beside products.
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
    overlap: bool = True
    assumed: str = ""


def _pipeline(size: int) -> dict[str, Any]:
    return {"pipeline_model_parallel_size": size}


def _tensor(size: int, pipeline: int = 1) -> dict[str, Any]:
    return {
        **{"tensor_model_parallel_size": size, "sequence_parallel": True},
        "pipeline_model_parallel_size": pipeline,
    }


PURO = "arXiv 2608.27370"
TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, with torch.compile"
OLMO = "OLMo-core, README of versions 1.0.6 to 1.2.0"
FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"
ASCEND = "ModelLink 2024, README and examples/, Atlas 900 A2"
_OLMO: dict[str, Any] = {"source": OLMO, "device": "h100", "gpus": 64, "seq_length": 4096, "assumed": "devices, batch"}


def _mpt(size: str, device: str, gpus: int, batch: int, micro: int, tokens: float, seq_length: int = 2048) -> Published:
    return Published(
        f"MPT {size}, {seq_length // 1024}k", FOUNDRY, device, gpus, batch, seq_length, tokens,
        model=MPT[size], micro_batch=micro,
    )  # fmt: skip


RUNS = (
    Published("Puro-2B", PURO, "h100", 24, 1536, 4096, tflops=238, layout=_pipeline(2), assumed="device, batch"),
    Published("Puro-2B", PURO, "h100", 96, 1536, 4096, tflops=192, layout=_pipeline(4), assumed="device, batch"),
    Published("torchtitan 8B", TITAN, "h100", 8, 16, 8192, 6667, model=LLAMA_8B, micro_batch=2),
    Published("torchtitan 8B", TITAN, "h100", 128, 256, 8192, 6514, model=LLAMA_8B, micro_batch=2),
    Published("OLMo 1B", batch=512, tokens=45500, model=network(16, 2048, 8192, 16, 100352), micro_batch=4, **_OLMO),
    Published("OLMo 7B", batch=1024, tokens=9850, model=network(32, 4096, 11008, 32, 100352), micro_batch=2, **_OLMO),
    Published("OLMo 13B", batch=2048, tokens=4500, model=network(40, 5120, 13824, 40, 100352), **_OLMO),
    Published(
        "SmolLM3 3B", "huggingface.co/blog/smollm3; 14k tokens/s, 29.4 % (tzafon.ai/blog/breaking-40k-tokens)", "h100",
        384, 576, 4096, 14000, model=network(36, 2048, 11008, 16, 128256, groups=4), micro_batch=3, layout=_tensor(2),
    ),
    _mpt("1B", "h100", 8, 112, 14, 45455),
    _mpt("1B", "h100", 64, 1280, 20, 44402),
    _mpt("3B", "h100", 16, 480, 10, 24142),
    _mpt("3B", "h100", 64, 1152, 6, 22525),
    _mpt("3B", "h100", 8, 144, 3, 16578, seq_length=8192),
    _mpt("7B", "h100", 8, 48, 6, 10643),
    _mpt("13B", "h100", 8, 16, 2, 4792),
    _mpt("13B", "h100", 64, 128, 2, 4800),
    Published(
        "torchtitan 8B", "torchtitan, docs/performance.md of 2024", "a100", 64, 64, 8192, 2973, model=LLAMA_8B,
    ),
    Published(
        "TinyLlama 1.1B", "github.com/jzhang38/TinyLlama", "a100", 16, 1024, 2048, 24000, micro_batch=8,
        model=network(22, 2048, 5632, 32, 32000, groups=4, size=64),
    ),
    _mpt("1B", "a100", 8, 448, 14, 20513),
    _mpt("3B", "a100", 8, 160, 10, 10811),
    _mpt("3B", "a100", 8, 144, 3, 7695, seq_length=8192),
    _mpt("7B", "a100", 8, 96, 6, 4641),
    _mpt("13B", "a100", 8, 48, 2, 2262),
    Published("Llama 2 7B", ASCEND, "910b", 8, 16, 4096, 4200, model=LLAMA_7B, layout=_tensor(8), micro_batch=4),
    Published(
        "Llama 2 13B", ASCEND, "910b", 8, 256, 4096, 1990, model=network(40, 5120, 13824, 40, 32000),
        layout=_tensor(8), micro_batch=2,
    ),
    Published("Llama 3 8B", ASCEND, "910b", 8, 64, 8192, 2483, model=LLAMA_8B, layout=_tensor(8), micro_batch=2),
    Published(
        "Llama 2 70B", ASCEND, "910b", 64, 128, 4096, 350, model=network(80, 8192, 28672, 64, 32000, groups=8),
        layout=_tensor(8, pipeline=4), micro_batch=2,
    ),
    Published(
        "Qwen 7B", ASCEND, "910b", 8, 64, 8192, 2499, model=network(32, 4096, 11008, 32, 151936), layout=_tensor(8),
        micro_batch=2,
    ),
)  # fmt: skip


def measured_layouts() -> Iterator[tuple[Published, float]]:
    """A team's runs of one network in many layouts, with the seconds of a step."""
    with LAYOUTS.open() as lines:
        for row in csv.DictReader(lines):
            layout = {
                "tensor_model_parallel_size": int(row["tensor"]),
                "pipeline_model_parallel_size": int(row["pipeline"]),
                "sequence_parallel": row["sequence_parallel"] == "1",
            }
            gpus, batch, length = int(row["gpus"]), int(row["global_batch"]), int(row["seq_length"])
            seconds = float(row["seconds"])
            published = Published(
                f"Aleph Alpha {row['network']}, {length // 1024}k", LAYOUTS_SOURCE, "a100", gpus, batch, length,
                batch * length / seconds / gpus, None, ALEPH_ALPHA[row["network"]], layout, int(row["micro_batch"]),
                overlap=False, assumed="nothing overlapped",
            )  # fmt: skip
            yield published, seconds


def recipe_of(published: Published, folder: Path) -> RunConfig:
    """The run as a recipe of ours, written into the folder.

    Raises:
        UserError: our recipes refuse the layout.
    """
    plain = {"sandwich_norm": False, "qk_layernorm": False, "logits_soft_cap": None} if published.model else {}
    overlap = {"overlap_grad_reduce": published.overlap, "overlap_param_gather": published.overlap}
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
        "parallel": {**overlap, **published.layout},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_run(path)


@dataclass(frozen=True)
class Run:
    """A published run as a recipe of ours."""

    published: Published
    recipe: RunConfig

    @property
    def device(self) -> Device:
        return DEVICES[self.published.device]

    @property
    def tokens(self) -> float:
        """Published tokens a second of a device."""
        return self.published.tokens or (self.published.tflops or 0) * 1e12 / flops_per_token(self.recipe)

    def planned(self, mfu: float) -> float:
        """Planned tokens a second of a device."""
        found = speed(self.recipe, self.published.gpus, self.device, mfu, self.published.overlap)
        assert found is not None
        return found.tokens_per_second / self.published.gpus

    def utilization(self) -> float:
        """Of matrix products, at which the plan is right for this run."""
        published = self.published
        tokens = self.tokens * published.gpus
        found = products_mfu(self.recipe, published.gpus, self.device, tokens, published.overlap)
        assert found is not None
        return found


def name_of(layout: RunConfig) -> str:
    parallel = layout.parallel
    virtual = f"x{parallel.virtual_pipeline_model_parallel_size}" if parallel.virtual_stages else ""
    sequence = " SP" if parallel.sequence_parallel else ""
    return f"TP {parallel.tensor_model_parallel_size}{sequence} PP {parallel.pipeline_model_parallel_size}{virtual}"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
