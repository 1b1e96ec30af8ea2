"""How the device's arithmetic rounds, saturates, and shows an overflow."""

from __future__ import annotations

from collections.abc import Callable

import torch

from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context
from megatron_kaiyuan.doctor.trial import PRODUCT_TOLERANCE, overflow_seen, product_error
from megatron_kaiyuan.platform.precisions import DTYPES


def half_product(context: Context) -> str:
    """1,024 x 1,024 by 1,024 x 1,024, against FP64 on the CPU."""
    platform = context.activate()
    drawn = torch.Generator().manual_seed(0)
    one, other = (torch.randn(1024, 1024, generator=drawn) for _ in range(2))
    errors = {
        name: product_error(one, other, DTYPES[name], platform.device) for name in platform.precisions if name != "fp32"
    }
    figure = ", ".join(f"{name} off by {error:.1e} of its size" for name, error in errors.items())
    if not all(error <= PRODUCT_TOLERANCE[name] for name, error in errors.items()):
        raise CheckFailed(figure)
    return figure


def fp32_product(context: Context) -> str:
    """Whether FP32 factors keep their range and their digits in a product: on a 910A they are rounded to FP16."""
    platform = context.activate()
    identity = torch.eye(64, device=platform.device)

    def through(number: float) -> float:
        return float((torch.full((64, 64), number, device=platform.device) @ identity)[0, 0].cpu())

    large, fine = through(100_000.0), through(1 + 2.0**-12)
    figure = f"100,000 becomes {large:,.0f}, and 1 + 2^-12 becomes 1 + {fine - 1:.3g}"
    rounds = large != 100_000.0 or fine != 1 + 2.0**-12
    if rounds != platform.products_round_fp32:
        expected = "rounded to FP16" if platform.products_round_fp32 else "exact"
        raise CheckFailed(f"{figure}; expected: {expected}")
    return f"{figure}: {'rounded to FP16, as expected' if rounds else 'exact'}"


def overflow(context: Context) -> str:
    """The overflow that a training step has to see, and a register that is clear after it was cleared."""
    platform = context.activate()
    platform.clear_overflow()
    torch.full((64,), 1.0, dtype=torch.float16, device=platform.device).exp().cpu()
    before = platform.overflowed()
    seen, left = overflow_seen(platform, lambda device: _filled(12.0, torch.float16, device).exp())
    platform.clear_overflow()
    after = platform.overflowed()
    how = "the float status" if platform.keeps_overflow else "an infinity"
    figure = f"exp(12) leaves {left:g}; {how} tells of it: {seen}; set before: {before}; set after clearing: {after}"
    if not seen or before or after:
        raise CheckFailed(figure)
    return figure


def masks(context: Context) -> str:
    """Facts, no verdict: which of the ways to mask scores a chip counts as overflow, and what they leave."""
    platform = context.activate()
    if not platform.keeps_overflow:
        context.require(because="overflows leave infinities here, and there is no float status that a mask could set")
    hidden = torch.arange(64, device=platform.device) > 31
    found = []
    for name, use in _MASKS.items():
        for dtype in (torch.float16, torch.float32):
            scores = _filled(1.0, dtype, platform.device)
            platform.clear_overflow()
            try:
                left = float(use(scores, hidden)[-1].cpu())
                outcome = f"{'sets it' if platform.overflowed() else 'does not'}, leaves {left:g}"
            except RuntimeError as error:
                outcome = f"fails ({str(error).splitlines()[0][:80]})"
            found.append(f"{name} in {str(dtype).removeprefix('torch.')} {outcome}")
    return "; ".join(found)


def _filled(number: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((64,), number, dtype=dtype, device=device)


_INFINITE = float("-inf")
# Of scores and what must not be seen.
_MASKS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "finite + (-inf)": lambda scores, hidden: scores + torch.full_like(scores, _INFINITE),
    "where(-inf)": lambda scores, hidden: torch.where(hidden, _INFINITE, scores),
    "masked_fill(-inf)": lambda scores, hidden: scores.masked_fill(hidden, _INFINITE),
    "softmax of -inf": lambda scores, hidden: scores.masked_fill(hidden, _INFINITE).softmax(-1),
    "softmax of the lowest": lambda scores, hidden: scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(
        -1
    ),
    "softmax of -10,000": lambda scores, hidden: scores.masked_fill(hidden, -1e4).softmax(-1),
}
