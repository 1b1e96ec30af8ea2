"""A step that is computed once more, to be looked at, and leaves nothing that a later step could find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.utils import get_model_config

from megatron_kaiyuan.metrics import not_recorded
from megatron_kaiyuan.train.state import TrainState


@contextlib.contextmanager
def repeated_step(state: TrainState, loss_scale: float) -> Iterator[None]:
    """Compute passes in the body with the loss scale that the step used, and record no metrics.

    Random generators are restored; gradient buffers are zeros afterwards.
    """
    config = get_model_config(state.models[0])
    scale_function = config.grad_scale_func
    host, device = torch.get_rng_state(), state.platform.rng_state()
    # The scaler has answered already: its scale is that of the next step.
    config.grad_scale_func = lambda loss: loss * loss_scale
    try:
        with not_recorded():
            yield
    finally:
        config.grad_scale_func = scale_function
        torch.set_rng_state(host)
        state.platform.set_rng_state(device)
        for model in state.models:
            model.zero_grad_buffer()
