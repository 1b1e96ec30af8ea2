"""`kaiyuan`, whose training steps print how often and where the host waited for the GPU, as torch tells when asked."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from megatron_kaiyuan.cli import main
from megatron_kaiyuan.train import loop

training_step = loop.training_step


def watched(*arguments: Any) -> Any:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return training_step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            places = [f"{one.filename}:{one.lineno}" for one in seen if "synchron" in str(one.message)]
            print("waits", len(places), *places, flush=True)


loop.training_step = watched  # type: ignore[assignment]
main()
