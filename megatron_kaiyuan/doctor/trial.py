"""What a training step needs of one device, tried on it: a broadcast, products, an overflow that is seen, an update.

Runs in a process of its own (`trial_process.py`). Each finding says what training would do wrong, and what to do.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import distributed

from megatron_kaiyuan.doctor.examination import Examination, in_one_line
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.platform.precisions import DTYPES

# Largest norm of the error of a product, as a share of the product's: a few units of the precision it is rounded to.
PRODUCT_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
_ELSEWHERE = "set platform=cpu until it is mended"
_OVERFLOWS: dict[str, Callable[[torch.device], torch.Tensor]] = {
    "exp(12) in FP16": lambda device: torch.full((64,), 12.0, dtype=torch.float16, device=device).exp(),
    "a product in FP16": lambda device: _square(torch.full((64, 64), 100.0, dtype=torch.float16, device=device)),
    "exp(100) in FP32": lambda device: torch.full((64,), 100.0, device=device).exp(),
}


def try_device(found: Examination, platform: Platform, keep: Callable[[], None]) -> None:
    """Try everything on this process's device; what fails is a finding.

    Args:
        keep: called before each part, so that what is known outlives a crash in it.
    """
    began = time.perf_counter()
    facts = found.facts["trial"] = {"collectives": False}
    for doing, part in (
        ("a broadcast and an all-reduce on one process", _try_collectives),
        ("products", _try_products),
        ("overflows", _try_overflows),
        ("an update by AdamW", _try_update),
    ):
        found.doing = doing
        keep()
        part(found, platform)
        facts["seconds"] = round(time.perf_counter() - began, 2)


@contextlib.contextmanager
def _trying(found: Examination, what: str, consequence: str, advice: str = _ELSEWHERE) -> Iterator[None]:
    """An operator that a device does not have fails in many ways; each is a finding."""
    try:
        yield
    except Exception as error:
        found.problem(f"device: {what} fails ({in_one_line(error)}): {consequence}; {advice}")


def _try_collectives(found: Examination, platform: Platform) -> None:
    name = platform.collective_backend
    with _trying(found, f"a process group of {name}", "no run could start", f"mend {name}, or {_ELSEWHERE}"):
        distributed.init_process_group(name, store=distributed.HashStore(), rank=0, world_size=1)
        try:
            found.facts["trial"]["collectives"] = all([_collective(found, platform, call) for call in _COLLECTIVES])
        finally:
            distributed.destroy_process_group()


_COLLECTIVES = (
    ("broadcast", lambda tensor: distributed.broadcast(tensor, 0)),
    ("all_reduce", distributed.all_reduce),
)


def _collective(found: Examination, platform: Platform, call: tuple[str, Callable[[torch.Tensor], object]]) -> bool:
    name, function = call
    before = len(found.findings)
    with _trying(found, f"{name} on one process", "every run would end at its start", _ELSEWHERE):
        for dtype in (torch.int64, torch.float32):
            values = torch.arange(8, dtype=dtype)
            tensor = values.to(platform.device)
            function(tensor)
            if not torch.equal(tensor.cpu(), values):
                found.problem(
                    f"device: {name} on one process changes numbers ({dtype}): ranks would start from other weights; "
                    f"install the {platform.collective_backend} that fits the driver, or {_ELSEWHERE}"
                )
    return len(found.findings) == before


def _try_products(found: Examination, platform: Platform) -> None:
    errors = found.facts["trial"]["product_errors"] = {}
    drawn = torch.Generator().manual_seed(0)
    one, other = torch.randn(96, 256, generator=drawn), torch.randn(256, 64, generator=drawn)
    for precision in platform.precisions:
        with _trying(found, f"a product in {precision}", f"no step of a run in {precision} could be computed"):
            error = product_error(one, other, DTYPES[precision], platform.device)
            # JSON has no NaN.
            errors[precision] = error if math.isfinite(error) else None
            rounded = precision == "fp32" and platform.products_round_fp32
            if not error <= PRODUCT_TOLERANCE["fp16" if rounded else precision]:
                found.problem(
                    f"device: products in {precision} are off by {error:.1e} of their size, against the CPU: training "
                    f"would learn from wrong numbers; check the driver and the device's health, or {_ELSEWHERE}"
                )
            elif rounded:
                found.note(
                    "device: products of FP32 tensors are computed from FP16 inputs here, so that precision fp32 and "
                    "model.fp32_head gain range in sums only"
                )


def product_error(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype, device: torch.device) -> float:
    """Norm of the error of a product on a device, by the norm of the product in FP64, of inputs rounded to `dtype`."""
    one, other = one.to(dtype), other.to(dtype)
    exact = one.double() @ other.double()
    product = (one.to(device) @ other.to(device)).cpu().double()
    return float((product - exact).norm() / exact.norm())


def _square(values: torch.Tensor) -> torch.Tensor:
    return values @ values


def _try_overflows(found: Examination, platform: Platform) -> None:
    where = "the device's float status" if platform.keeps_overflow else "infinities"
    with _trying(found, f"looking for an overflow in {where}", "every FP16 run would end at its first step"):
        platform.clear_overflow()
        torch.full((64,), 1.0, dtype=torch.float16, device=platform.device).exp().cpu()
        if platform.overflowed():
            found.problem(
                "device: its float status says overflow where nothing overflowed: every step would be skipped; see "
                f"that nothing else uses the device, or {_ELSEWHERE}"
            )
    for what, overflow in _OVERFLOWS.items():
        with _trying(found, what, "no step in that precision could be computed"):
            seen, left = overflow_seen(platform, overflow)
            if not seen:
                found.problem(
                    f"device: {what} leaves {left:g} and nothing that tells of the overflow ({where} should): training "
                    f"would learn from wrong numbers; {_mode_to_set(platform)}"
                )
            platform.clear_overflow()
            if platform.overflowed():
                found.problem(
                    "device: its float status stays set after it was cleared: every step after the first overflow "
                    f"would be skipped; install the driver and CANN that fit torch_npu, or {_ELSEWHERE}"
                )


def overflow_seen(platform: Platform, overflow: Callable[[torch.device], torch.Tensor]) -> tuple[bool, float]:
    """Whether a run would see an overflow, and the first number that it leaves."""
    platform.clear_overflow()
    left = float(overflow(platform.device).flatten()[0].cpu())
    return platform.overflowed() if platform.keeps_overflow else math.isinf(left), left


def _mode_to_set(platform: Platform) -> str:
    if platform.name == "npu" and not platform.keeps_overflow:
        return "unset INF_NAN_MODE_ENABLE, or set it to 1"
    return f"install a driver that fits, or {_ELSEWHERE}"


def _try_update(found: Examination, platform: Platform) -> None:
    # Only here: importing it chooses among the libraries that have an optimizer.
    import megatron.core.optimizer as megatron_optimizer

    from megatron_kaiyuan.optim.adamw import AdamW

    if not megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        kind = megatron_optimizer.Adam
        found.facts["trial"]["adamw"] = name = f"{kind.__name__} of {kind.__module__.partition('.')[0]}"
        build: Callable[..., torch.optim.Optimizer] = kind
    else:
        fused = platform.has_fused_adamw
        found.facts["trial"]["adamw"] = name = "torch's fused kernel" if fused else "torch's kernel for each operation"

        def build(params: list[torch.Tensor]) -> torch.optim.Optimizer:
            return AdamW(params, fused=fused)

    with _trying(found, f"an update by AdamW ({name})", "every run would end at its first update"):
        if not (off := update_error(platform.device, build)) <= 1e-5:
            found.problem(
                f"device: an update by AdamW ({name}) is off by {off:.1e} of its size, against the CPU: weights would "
                f"go astray; install the driver and libraries that fit torch, or {_ELSEWHERE}"
            )


def update_error(device: torch.device, build: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> float:
    """Norm of the error of three updates, by the norm of what torch's own AdamW does on the CPU to the same weights."""
    drawn = torch.Generator().manual_seed(0)
    first = [torch.randn(shape, generator=drawn) for shape in ((64, 32), (33,))]
    gradients = [[torch.randn(one.shape, generator=drawn) for one in first] for _ in range(3)]

    def updated(place: torch.device, make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(one.to(place, copy=True)) for one in first]
        optimizer = make(weights)  # type: ignore[arg-type]
        for group in optimizer.param_groups:
            group.update(lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.to(place)
            optimizer.step()
        return [weight.detach().cpu() for weight in weights]

    def plain(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, fused=False, foreach=False)

    expected = updated(torch.device("cpu"), plain)
    pairs = list(zip(updated(device, build), expected, first, strict=True))
    wrong = math.hypot(*(float((got - right).norm()) for got, right, _ in pairs))
    return wrong / math.hypot(*(float((right - start).norm()) for _, right, start in pairs))
