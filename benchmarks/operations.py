"""What each operation of a layer costs on a GPU, by who computes it, beside what memory and products allow.

    pip install liger-kernel
    python -m benchmarks.operations                       # Kaiyuan-2B, BF16, micro-batches of 2 x 4,096 tokens
    python -m benchmarks.operations --precision fp16 --hidden 1024 --ffn 3072

Two ceilings are measured first: a copy of 1 GiB, bytes read and written counted, and a product of 8,192^3 on random
numbers. An operation's floor is the bytes that it must move (each input read once, each output written once) at the
copy's speed; of a matrix product, its FLOPs at the product's. Printed are milliseconds forward and
backward, their share of the floor, and the distance of values and gradients from the same formulas in FP32, as
|found - exact| / |exact|, the largest of all tensors. `host` is how long Python takes to start both passes: where a
layer's sum is above the device's, the device waits. Medians; small operations are timed as CUDA graphs. Attention has a
benchmark of its own, `benchmarks.attention`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_kaiyuan.platform.precisions import DTYPES

Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Shape:
    """Of one rank: tokens of a micro-batch and widths."""

    seq_length: int
    batch: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        return self.seq_length * self.batch


@dataclass(frozen=True)
class Operation:
    """Inputs, the bytes that each pass must move, how often a layer needs it, itself in FP32, and who computes it."""

    name: str
    inputs: Callable[[], list[torch.Tensor]]
    forward_bytes: int
    backward_bytes: int
    a_layer: float
    exact: Function
    by: dict[str, Function]


def median_ms(function: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return do_bench(function, warmup=10, rep=60, return_mode="median")


def graph_ms(function: Callable[[], Any]) -> float:
    """Without what it takes the host to start it."""
    from triton.testing import do_bench_cudagraph

    return do_bench_cudagraph(function, rep=20, return_mode="median")


def host_ms(function: Callable[[], Any], repeats: int = 20) -> float:
    """Return the milliseconds until the work is queued on the device."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    taken = time.perf_counter() - began
    torch.cuda.synchronize()
    return 1e3 * taken / repeats


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Of this device: bytes a second of a copy, FLOP/s of a product."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / (1e-3 * median_ms(lambda: target.copy_(source)))
    one, other = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return copied, 2 * 8192**3 / (1e-3 * median_ms(lambda: one @ other))


def by(operation: str, *libraries: str) -> dict[str, Any]:
    """What each library that is there computes an operation with; the others are named."""
    from megatron_kaiyuan.backend.choose import choose
    from megatron_kaiyuan.config import BackendConfig
    from megatron_kaiyuan.errors import UserError
    from megatron_kaiyuan.platform import current

    found = {}
    for library in libraries:
        try:
            backend = choose(BackendConfig(**{operation: library}), current())  # type: ignore[arg-type]
        except UserError as error:
            print(f"  left out: {error}")
        else:
            found[library] = getattr(backend, operation)
    return found


def random(dtype: torch.dtype, *size: int) -> torch.Tensor:
    return torch.randn(size, device="cuda", dtype=dtype)


def norm(name: str, shape: Shape, dtype: torch.dtype, rows: tuple[int, ...], size: int, a_layer: float) -> Operation:
    """Of so many rows a token, each of so many elements."""
    from megatron_kaiyuan.backend.operations import rms_norm

    def function_of(kernel: Any, to: torch.dtype) -> Function:
        return lambda values, weight: kernel(values, weight, 1e-6, to)

    kernels = {"formulas": rms_norm, **by("norm", "torch", "compiled", "liger")}
    moved = dtype.itemsize * shape.tokens * math.prod(rows) * size
    return Operation(
        name,
        lambda: [random(dtype, shape.seq_length, shape.batch, *rows, size), 1 + random(dtype, size)],
        2 * moved,
        3 * moved,
        a_layer,
        function_of(rms_norm, torch.float32),
        {library: function_of(kernel, dtype) for library, kernel in kernels.items()},
    )


def swiglu(shape: Shape, dtype: torch.dtype) -> Operation:
    from megatron_kaiyuan.backend import operations

    moved = dtype.itemsize * shape.tokens * shape.ffn
    return Operation(
        "SwiGLU",
        lambda: [random(dtype, shape.seq_length, shape.batch, 2 * shape.ffn)],
        3 * moved,
        5 * moved,
        1,
        operations.swiglu,
        by("swiglu", "torch", "compiled", "liger"),
    )


def rotation(shape: Shape, dtype: torch.dtype) -> Operation:
    from megatron_kaiyuan.backend import operations

    size = shape.head_size
    frequencies = 1e6 ** -(torch.arange(size // 2, device="cuda") * 2 / size)
    half = torch.arange(shape.seq_length, device="cuda")[:, None] * frequencies
    angles = torch.cat((half, half), -1)[:, None, None, :]

    def function_of(rope: Any) -> Function:
        return lambda query, key: rope(query, key, angles)

    moved = 2 * dtype.itemsize * shape.tokens * (shape.heads + shape.groups) * size
    return Operation(
        "rotation",
        lambda: [random(dtype, shape.seq_length, shape.batch, heads, size) for heads in (shape.heads, shape.groups)],
        moved,
        moved,
        1,
        function_of(operations.rotate),
        {library: function_of(rope) for library, rope in by("rope", "torch", "compiled").items()},
    )


def cross_entropy(shape: Shape, dtype: torch.dtype) -> Operation:
    from megatron.core import parallel_state

    from megatron_kaiyuan.backend import operations
    from megatron_kaiyuan.backend.formulas import EAGER

    labels = torch.randint(shape.vocabulary, (shape.tokens,), device="cuda")
    group = parallel_state.get_tensor_model_parallel_group()

    def function_of(formulas: Any) -> Function:
        return lambda logits: operations.cross_entropy(logits, labels, 30.0, group, formulas)[0]

    moved = dtype.itemsize * shape.tokens * shape.vocabulary
    return Operation(
        "capped cross-entropy",
        lambda: [3 * random(dtype, shape.tokens, shape.vocabulary)],
        moved,
        2 * moved,
        0,
        function_of(EAGER),
        {library: function_of(formulas) for library, formulas in by("loss", "torch", "compiled").items()},
    )


def operations_of(shape: Shape, dtype: torch.dtype) -> list[Operation]:
    # Keys have a norm as queries have, and fewer heads.
    heads = 1 + shape.groups / shape.heads
    return [
        norm("norm of the hidden size", shape, dtype, (), shape.hidden, 4),
        norm("norm of queries", shape, dtype, (shape.heads,), shape.head_size, heads),
        swiglu(shape, dtype),
        rotation(shape, dtype),
        cross_entropy(shape, dtype),
    ]


def measure_operation(operation: Operation, copied: float) -> None:
    for library, function in operation.by.items():
        try:
            distance = distance_from_exact(operation, function)
            leaves = [leaf.requires_grad_() for leaf in operation.inputs()]
            # The host's share of a large one is nothing, and its graph would hold too much.
            clock = graph_ms if operation.forward_bytes < 1 << 30 else median_ms
            with torch.no_grad():
                forward = clock(lambda: function(*leaves))  # noqa: B023
            gradients = [torch.randn_like(output) for output in as_tuple(function(*leaves))]

            def both() -> Any:
                return torch.autograd.grad(as_tuple(function(*leaves)), leaves, gradients)  # noqa: B023

            # The loss takes its backward pass once, so forward comes along.
            backward, host = clock(both) - forward, host_ms(both)
        except Exception as error:
            print(f"  {operation.name:<24} {library:<9} failed: {str(error).splitlines()[0]}", flush=True)
            continue
        floors = [1e3 * moved / copied for moved in (operation.forward_bytes, operation.backward_bytes)]
        print(
            f"  {operation.name:<24} {library:<9} {forward:7.3f} ms {floors[0] / forward:4.0%}"
            f"  {backward:7.3f} ms {floors[1] / backward:4.0%}"
            f"   {operation.a_layer * (forward + backward):7.3f} ms a layer, host {operation.a_layer * host:6.3f}"
            f"   off by {distance:.1e}",
            flush=True,
        )


def distance_from_exact(operation: Operation, function: Function) -> float:
    """Largest relative distance of outputs and gradients from the same formulas on FP32 inputs."""
    leaves = [leaf.requires_grad_() for leaf in operation.inputs()]
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    wanted = as_tuple(operation.exact(*exact))
    gradients = [torch.randn_like(output, dtype=leaves[0].dtype) for output in wanted]
    wanted_gradients = torch.autograd.grad(
        wanted, exact, [gradient.to(output.dtype) for gradient, output in zip(gradients, wanted, strict=True)]
    )
    found = as_tuple(function(*leaves))
    found_gradients = torch.autograd.grad(
        found, leaves, [gradient.to(output.dtype) for gradient, output in zip(gradients, found, strict=True)]
    )
    return max(
        ((one.float() - other.float()).norm() / other.float().norm()).item()
        for one, other in zip((*found, *found_gradients), (*wanted, *wanted_gradients), strict=True)
    )


def as_tuple(outputs: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def measure_products(shape: Shape, dtype: torch.dtype, product: float) -> None:
    h, f, d = shape.hidden, shape.ffn, shape.head_size
    layers = {
        "qkv": (h, (shape.heads + 2 * shape.groups) * d),
        "proj": (shape.heads * d, h),
        "fc1": (h, 2 * f),
        "fc2": (f, h),
        "head": (h, shape.vocabulary),
    }
    for name, (inner, outer) in layers.items():
        values = torch.randn(shape.tokens, inner, device="cuda", dtype=dtype)
        weight = torch.randn(outer, inner, device="cuda", dtype=dtype)
        gradient = torch.randn(shape.tokens, outer, device="cuda", dtype=dtype)
        flops = 2 * shape.tokens * inner * outer
        passes = {
            "forward": lambda: values @ weight.t(),  # noqa: B023
            "input": lambda: gradient @ weight,  # noqa: B023
            "weight": lambda: gradient.t() @ values,  # noqa: B023
        }
        times = {of: median_ms(run) for of, run in passes.items()}
        shown = "  ".join(f"{of} {ms:7.3f} ms {flops / (1e-3 * ms) / product:4.0%}" for of, ms in times.items())
        print(f"  {name:<5} {inner:>5} to {outer:<6} {shown}", flush=True)


def measure_update(elements: int, copied: float) -> None:
    """torch's fused AdamW in FP32: weight and both moments read and written, the gradient read."""
    weight = torch.randn(elements, device="cuda", requires_grad=True)
    weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW([weight], fused=True)
    ms = median_ms(optimizer.step)
    print(
        f"  fused AdamW of {elements / 1e6:.0f} M weights {ms:.3f} ms, {1e3 * 28 * elements / copied / ms:.0%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["bf16", "fp16"], default="bf16")
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--ffn", type=int, default=6144)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=151936)
    given = vars(parser.parse_args())
    dtype = DTYPES[given.pop("precision")]
    shape = Shape(**given)
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(platform.activate("cuda")):
        copied, product = ceilings(dtype)
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {dtype}, {shape}")
        print(f"copy {copied / 1e12:.2f} TB/s, product {product / 1e12:.0f} TFLOP/s")
        for operation in operations_of(shape, dtype):
            measure_operation(operation, copied)
            torch.cuda.empty_cache()
        measure_products(shape, dtype, product)
        measure_update(1 << 28, copied)


if __name__ == "__main__":
    main()
