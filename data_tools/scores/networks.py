"""What scorers with a neural network share: the device, batches of like length, errors of loading in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_kaiyuan.errors import UserError, excerpt


def pick_device(name: str) -> str:
    """Return `name`, or for `auto` the accelerator that torch finds, else `cpu`.

    Raises:
        UserError: torch has no such device here.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator.type if accelerator else "cpu"
    try:
        torch.empty(1, device=name)
    # torch raises AssertionError for a device that it was built without.
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"device={name}: not available here ({reason}); write device=cpu or device=auto") from error
    return name


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches, the longest first, so that little is padded and a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def check_at_least_one(scorer: str, **settings: int) -> None:
    """Raises UserError for a setting below 1."""
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"scorer {scorer}: {name}={value} is too small; write 1 or more")


@contextlib.contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Turn what Hugging Face's libraries raise for a missing or damaged folder into one line."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no {what} here (config.json is missing); name a local Hugging Face folder")
    try:
        yield
    except UserError:
        raise
    # Besides OSError and ValueError: safetensors, tokenizers and torch each raise their own.
    except Exception as error:
        raise UserError(
            f"{folder}: transformers cannot load this {what} ({type(error).__name__}: {excerpt(error)})"
        ) from error
