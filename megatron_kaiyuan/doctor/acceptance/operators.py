"""Single operators of a training step: right against the CPU, how fast, and silent where nothing overflows."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import torch

from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context, NotPossible, worst
from megatron_kaiyuan.doctor.trial import PRODUCT_TOLERANCE, overflow_seen, product_error, update_error
from megatron_kaiyuan.platform import Platform

_ROUNDS = 5
_GIB = 1 << 30
# Shares of their size by which FP16 results may be off: they are rounded once, some sums twice.
_TOLERANCE = 5e-3


def attention(context: Context) -> str:
    """Kaiyuan-2B's attention, forward and backward, as training takes it."""
    platform = context.activate()
    from megatron_kaiyuan.backend.choose import choose
    from megatron_kaiyuan.config import BackendConfig

    tokens = 256 if context.small else 4096
    backend = choose(BackendConfig(), platform)
    drawn = torch.Generator().manual_seed(0)
    shapes = [(1, heads, tokens, 128) for heads in (16, 8, 8)]
    inputs = [torch.randn(shape, generator=drawn).half() for shape in shapes]
    before = platform.peak_memory_bytes()
    query, key, value = (one.to(platform.device).requires_grad_() for one in inputs)
    platform.clear_overflow()

    def step() -> torch.Tensor:
        output = backend.attention(query, key, value, None, None)
        output.float().sum().backward()
        return output

    output, first, later = _timed(platform, step)
    set_by_it, peak = platform.overflowed(), platform.peak_memory_bytes() - before
    error = _error(output, _formula(*(one.float() for one in inputs)))
    figure = (
        f"{tokens:,} tokens by {backend.choices['attention'].implementation}: off by {error:.1e}, float status "
        f"{'set' if set_by_it else 'not set'}, first {first:.2f} s, then {1e3 * later:.1f} ms, "
        f"peak {peak / _GIB:.2f} GiB"
    )
    if set_by_it or not error <= _TOLERANCE:
        raise CheckFailed(figure)
    return figure


def _formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention in FP32 on the CPU, head by head, written out."""
    length, size = query.shape[-2:]
    future = torch.ones(length, length, dtype=torch.bool).triu_(1)
    heads = []
    for number in range(query.size(1)):
        group = number * key.size(1) // query.size(1)
        scores = (query[0, number] @ key[0, group].T) * size**-0.5
        heads.append(scores.masked_fill_(future, float("-inf")).softmax(-1) @ value[0, group])
    return torch.stack(heads).unsqueeze(0)


def stream(context: Context) -> str:
    """A product on a stream of its own, and whether the overflow of one is seen from the stream of training."""
    platform = context.activate()
    context.require("cuda", "npu", because="a CPU has no streams")
    other: Any = torch.cuda.Stream()
    drawn = torch.Generator().manual_seed(0)
    one, two = torch.randn(512, 512, generator=drawn), torch.randn(512, 512, generator=drawn)

    def on_other(function: Callable[[], Any]) -> Any:
        with torch.cuda.stream(other):
            result = function()
        other.synchronize()
        return result

    error = on_other(lambda: product_error(one, two, torch.float16, platform.device))
    hundreds = torch.full((64, 64), 100.0, dtype=torch.float16, device=platform.device)
    platform.synchronize()
    seen, _ = overflow_seen(platform, lambda device: on_other(lambda: hundreds @ hundreds))
    figure = f"FP16 off by {error:.1e} of its size; an overflow there is {'seen' if seen else 'NOT seen'} from here"
    if not error <= PRODUCT_TOLERANCE["fp16"]:
        raise CheckFailed(figure)
    return figure


def npu_rms_norm(context: Context) -> str:
    """[4096, 2048], against torch's formula in FP32 on the CPU, forward and backward."""
    norm = torch.nn.functional.rms_norm
    return _kernel(
        context,
        "npu_rms_norm",
        ((4096, 2048), (2048,)),
        lambda kernel, values, weight: kernel(values, weight, epsilon=1e-6)[0],
        lambda values, weight: norm(values, weight.shape, weight, 1e-6),
    )


def npu_swiglu(context: Context) -> str:
    """[1024, 12288], against torch's formula in FP32 on the CPU, forward and backward."""
    silu = torch.nn.functional.silu
    return _kernel(
        context,
        "npu_swiglu",
        ((1024, 12288),),
        lambda kernel, values: kernel(values, dim=-1),
        lambda values: silu(values.chunk(2, -1)[0]) * values.chunk(2, -1)[1],
    )


def _kernel(
    context: Context,
    name: str,
    shapes: tuple[tuple[int, ...], ...],
    call: Callable[..., torch.Tensor],
    formula: Callable[..., torch.Tensor],
) -> str:
    context.require("npu", because="it is a kernel of torch_npu")
    platform = context.activate()
    kernel = getattr(importlib.import_module("torch_npu"), name)
    drawn = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=drawn).half() for shape in shapes]
    expected = _with_gradients(formula, [one.float() for one in inputs])
    leaves = [one.to(platform.device) for one in inputs]
    platform.clear_overflow()
    try:
        found, first, later = _timed(platform, lambda: _with_gradients(lambda *args: call(kernel, *args), leaves))
    except Exception as error:
        # A missing kernel is not a failure: training uses another implementation on such a chip.
        raise NotPossible(f"{platform.device_name()} does not run it ({str(error).splitlines()[0][:160]})") from error
    off = worst(_error(one, right) for one, right in zip(found, expected, strict=True))
    register = "set" if platform.overflowed() else "not set"
    taken = "training takes it" if name.removeprefix("npu_").removeprefix("rms_") in platform.fused else "not taken"
    figure = f"off by {off:.1e}, float status {register}, first {first:.2f} s, then {1e3 * later:.1f} ms; {taken}"
    if not off <= _TOLERANCE:
        raise CheckFailed(figure)
    return figure


def _with_gradients(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [one.detach().requires_grad_() for one in inputs]
    output = function(*leaves)
    output.backward(torch.full_like(output, 0.5))
    return [output, *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]


def adamw(context: Context) -> str:
    """One kernel for each operation, then the fused one, which a chip need not have: training takes it where it is."""
    platform = context.activate()
    from megatron_kaiyuan.optim.adamw import AdamW

    plain = update_error(platform.device, lambda params: AdamW(params, fused=False))
    figure = f"plain off by {plain:.1e} of its size"
    if not plain <= 1e-5:
        raise CheckFailed(figure)
    has = "expected" if platform.has_fused_adamw else "not expected"
    try:
        off = update_error(platform.device, lambda params: AdamW(params, fused=True))
    except Exception as error:
        figure = f"{figure}; fused ({has} on this chip) fails: {str(error).splitlines()[0][:120]}"
        if platform.has_fused_adamw:
            raise CheckFailed(figure) from error
        return figure
    figure = f"{figure}; fused ({has} on this chip) off by {off:.1e}"
    if platform.has_fused_adamw and not off <= 1e-5:
        raise CheckFailed(figure)
    return figure


def indexing(context: Context) -> str:
    """What loss, grouped heads and embedding index by, whose newer kernels a 910A does not have."""
    platform = context.activate()
    tokens, vocabulary = (256, 2048) if context.small else (4096, 32768)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (tokens, 1), generator=drawn)
    logits = torch.randn(tokens, vocabulary, generator=drawn)
    heads = torch.randn(1, 8, tokens, 128, generator=drawn).half()
    table = torch.randn(vocabulary, 256, generator=drawn).half()
    uses: dict[str, tuple[list[torch.Tensor], Callable[..., torch.Tensor]]] = {
        "gather": ([logits, ids], lambda values, index: values.gather(-1, index)),
        "scatter_add": ([logits, ids], lambda values, index: values.scatter_add(-1, index, values[:, :1])),
        "repeat_interleave": ([heads], lambda values: values.repeat_interleave(2, 1)),
        "embedding backward": ([ids, table], _embedding_gradient),
    }
    found, wrong = [], False
    for name, (inputs, use) in uses.items():
        on_device = [one.to(platform.device) for one in inputs]
        try:
            got, first, later = _timed(platform, lambda use=use, inputs=on_device: use(*inputs))  # type: ignore[misc]
        except Exception as error:
            found.append(f"{name} fails: {str(error).splitlines()[0][:120]}")
            wrong = True
            continue
        off = _error(got, use(*inputs))
        wrong = wrong or not off <= _TOLERANCE
        found.append(f"{name} off by {off:.1e}, first {first:.2f} s, then {1e3 * later:.2f} ms")
    figure = "; ".join(found)
    if wrong:
        raise CheckFailed(figure)
    return figure


def _embedding_gradient(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    weight = table.detach().requires_grad_()
    torch.nn.functional.embedding(ids, weight).float().sum().backward()
    assert weight.grad is not None
    return weight.grad


def _timed(platform: Platform, function: Callable[[], Any]) -> tuple[Any, float, float]:
    """The first result, the seconds it took with all that is prepared once, and the mean of the calls that follow."""
    platform.synchronize()
    began = time.perf_counter()
    result = function()
    platform.synchronize()
    first = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        function()
    platform.synchronize()
    return result, first, (time.perf_counter() - began) / _ROUNDS


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, by the norm of what is expected."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())
