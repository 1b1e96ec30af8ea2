"""Core attention, both passes, by each kernel of the backend in turns: within documents, and on a GPU causal too.

    python -m benchmarks.attention                      # CPU, FP32
    python -m benchmarks.attention --platform cuda      # one GPU, BF16: Kaiyuan-2B's heads at 4,096 tokens

The peer is torch's scaled_dot_product_attention: causal, or under a mask of all pairs, which is all that it knows of
documents. Their lengths are log-normal (sigma 1, mean 512), the same for all kernels. Printed are medians, the
median of the rounds' ratios with the range of their middle half, and the largest distance of output and gradients from
torch's, as |found - theirs| / |theirs|. On a GPU also the part of a product's FLOP/s, of causal attention, and whether
gradients repeat bit by bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from megatron_kaiyuan.platform.precisions import DTYPES

KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {"document_attention": ("torch", "split")},
    "cuda": {"attention": ("torch", "cudnn", "flash", "efficient"), "document_attention": ("torch", "flex")},
}
Passes = Callable[[], list[torch.Tensor]]


@dataclass(frozen=True)
class Shape:
    seq_length: int
    batch: int
    heads: int
    groups: int
    head_size: int


SHAPES = {
    "cpu": [Shape(512, 4, 4, 2, 64), Shape(1024, 2, 4, 2, 64), Shape(2048, 2, 4, 2, 64), Shape(4096, 1, 4, 2, 64)],
    "cuda": [Shape(4096, 2, 16, 8, 128)],
}


def document_numbers(shape: Shape) -> torch.Tensor:
    """[b, s]: the number of each token's document."""
    drawn = np.random.default_rng(0)
    lengths = drawn.lognormal(np.log(512) - 0.5, 1, (shape.batch, shape.seq_length)).astype(int).clip(1)
    rows: list[np.ndarray] = [
        np.repeat(np.arange(len(of_sample)), of_sample)[: shape.seq_length] for of_sample in lengths
    ]
    return torch.from_numpy(np.stack(rows))


def passes_of(shape: Shape, dtype: torch.dtype, device: str, operation: str, library: str) -> Passes:
    """Output and gradients of a kernel, of inputs that are laid as the projection lays them."""
    from megatron_kaiyuan.backend.choose import choose
    from megatron_kaiyuan.config import BackendConfig
    from megatron_kaiyuan.platform import current

    kernel = getattr(choose(BackendConfig(**{operation: library}), current()), operation)  # type: ignore[arg-type]
    drawn = torch.Generator().manual_seed(0)
    query, key, value, gradient = (
        torch.randn(shape.seq_length, shape.batch, heads, shape.head_size, generator=drawn).to(device, dtype)
        for heads in (shape.heads, shape.groups, shape.groups, shape.heads)
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    documents_bs = document_numbers(shape).to(device) if operation == "document_attention" else None

    def passes() -> list[torch.Tensor]:
        output = kernel(*(leaf.permute(1, 2, 0, 3) for leaf in leaves), None, documents_bs)
        return [output, *torch.autograd.grad(output, leaves, gradient.permute(1, 2, 0, 3))]

    return passes


def seconds(passes: Passes, device: str) -> float:
    began = time.perf_counter()
    passes()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def product_flops(dtype: torch.dtype) -> float:
    """FLOP/s of a product of 8,192^3 on this GPU."""
    one, other = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    taken = [seconds(lambda: [one @ other], "cuda") for _ in range(9)]
    return 2 * 8192**3 / statistics.median(taken)


def measure(shape: Shape, dtype: torch.dtype, device: str, operation: str, rounds: int, product: float | None) -> None:
    kernels: dict[str, Passes] = {}
    results: dict[str, list[torch.Tensor]] = {}
    for library in KERNELS[device][operation]:
        passes = passes_of(shape, dtype, device, operation, library)
        try:
            # The first one compiles.
            passes()
            results[library] = passes()
        except RuntimeError as error:
            print(f"  {operation:<19} {library:<10} failed: {str(error).splitlines()[0]}", flush=True)
        else:
            kernels[library] = passes
    taken: dict[str, list[float]] = {library: [] for library in kernels}
    for _ in range(rounds):
        for library, passes in kernels.items():
            taken[library].append(seconds(passes, device))
    for library, found in taken.items():
        ratios = [theirs / ours for theirs, ours in zip(taken["torch"], found, strict=True)]
        low, middle, high = statistics.quantiles(ratios)
        distance = max(
            ((one.float() - other.float()).norm() / other.float().norm()).item()
            for one, other in zip(results[library], results["torch"], strict=True)
        )
        line = f"  {operation:<19} {library:<10} {1e3 * statistics.median(found):8.2f} ms"
        line += f"  {middle:6.2f} times as fast as torch ({low:.2f} to {high:.2f}), {distance:.0e} from it"
        if product is not None:
            # Two products forward and five backward, over half of the pairs.
            flops = 7 * shape.batch * shape.heads * shape.head_size * shape.seq_length**2
            repeats = all(map(torch.equal, kernels[library](), kernels[library]()))
            part = flops / statistics.median(found) / product
            line += f", {part:.0%} of a product" * (operation == "attention")
            line += f", repeats {'' if repeats else 'not '}bit by bit"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=KERNELS, default="cpu")
    parser.add_argument("--precision", choices=DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    dtype = DTYPES[given.precision or ("fp32" if given.platform == "cpu" else "bf16")]
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(platform.activate(given.platform)):
        on_gpu = given.platform == "cuda"
        device = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} cores"
        print(f"torch {torch.__version__}, {device}, {dtype}, load {os.getloadavg()[0]:.1f}")
        product = product_flops(dtype) if on_gpu else None
        for shape in SHAPES[given.platform]:
            print(shape)
            for operation in KERNELS[given.platform]:
                measure(shape, dtype, given.platform, operation, given.rounds, product)


if __name__ == "__main__":
    main()
