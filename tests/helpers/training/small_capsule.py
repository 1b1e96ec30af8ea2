"""Capsules of a small network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from tests.helpers.references.network import SHAPE

IDS_BS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(3))


PLACES = {
    "embedding": ("embedding", None, "embedding", "word_embeddings.weight"),
    "layer": ("layer", 2, "mlp_output", "mlp_output"),
    "head": ("head", None, "logits", "logits"),
}


def make_capsule(
    folder: Path,
    part: str,
    direction: str,
    precision: str = "fp32",
    head_times: float = 1.0,
    apart: bool = False,
    **changes: Any,
) -> dict[tuple[str, str], float]:
    """Two micro-batches through a whole network, of which the second one's part goes into a capsule.

    Returns:
        The largest |x| of all that was seen of this part, in the order of execution.
    """
    from megatron_kaiyuan.model.build import build_model, transformer_config
    from megatron_kaiyuan.monitor.capsule import Capture, write_capsule
    from megatron_kaiyuan.monitor.first_out_of_range import Seen, TensorWatch
    from megatron_kaiyuan.platform.precisions import DTYPES

    model = ModelConfig(**{**SHAPE, **changes})
    torch.manual_seed(1)
    network = build_model(model, transformer_config(model, ParallelConfig(), precision)).to(DTYPES[precision])
    network.output_layer.weight.data.mul_(head_times)
    peaks: dict[tuple[str, str], float] = {}

    def look(seen: Seen, micro_batch: int, tensor: torch.Tensor) -> None:
        if micro_batch == 1 and (seen.part, seen.layer) == PLACES[part][:2]:
            peaks[seen.tensor, seen.direction] = float(tensor.abs().amax())

    TensorWatch(network, look)
    tensor = PLACES[part][2 if direction == "forward" else 3]
    seen = Seen(part, PLACES[part][1], tensor, "module", direction)  # type: ignore[arg-type]
    capture = Capture(network, seen, micro_batch=1)
    documents_bs = torch.arange(IDS_BS.shape[1]).expand(len(IDS_BS), -1) // 7 if apart else None
    for ids_bs in (IDS_BS, IDS_BS.flip(0, 1)):
        positions_bs = torch.arange(ids_bs.shape[1]).expand(len(ids_bs), -1)
        loss = network(ids_bs, positions_bs, documents_bs, labels=ids_bs.roll(-1, 1)).mean()
        (1024 * loss).backward()
    tensors = {**capture.whole(), "random": {"host": torch.get_rng_state()}}
    write_capsule(
        folder,
        {
            "message": "a test",
            "seen": dataclasses.asdict(seen),
            "precision": precision,
            "model": model.model_dump(mode="json"),
            "z_loss": 0.0,
        },
        tensors,
    )
    return peaks
