"""Forward passes between steps, to measure the network as it is; no later step could find any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from megatron_kaiyuan.metrics import not_recorded
from megatron_kaiyuan.train.state import TrainState


@contextlib.contextmanager
def measuring(state: TrainState) -> Iterator[None]:
    """Make the weights whole; in the body modules are in evaluation mode, and nothing is recorded. Collective."""
    state.gather_weights()
    for model in state.models:
        model.eval()
    try:
        with not_recorded():
            yield
    finally:
        for model in state.models:
            model.train()
