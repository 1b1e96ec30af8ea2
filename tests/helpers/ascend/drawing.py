"""Random numbers of a device: drawn by the host from the state of the device's generator."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


@contextlib.contextmanager
def drawing(func: Any, leaves: Sequence[Any]) -> Iterator[None]:
    """While an operator that draws is computed, the host's default generator stands for the one of the NPU.

    The same state draws the same; torch_npu's own kernel moves it on.
    """
    if torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    named = next((leaf for leaf in leaves if isinstance(leaf, torch.Generator)), None)
    generator = named or torch.npu.default_generators[torch.npu.current_device()]  # type: ignore[attr-defined]
    digest = hashlib.sha256(generator.get_state().numpy().tobytes()).digest()
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little"))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
