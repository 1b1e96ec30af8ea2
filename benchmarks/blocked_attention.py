"""Attention in blocks of queries beside torch's attention without a fused kernel: memory and time of both passes.

    OMP_NUM_THREADS=1 python -m benchmarks.blocked_attention

The peer is scaled_dot_product_attention's math path, which a device takes that has no fused kernel (a 910A), on this
CPU in FP32: causal, grouped heads. Saved is what autograd keeps from the forward to the backward pass, besides the
inputs. The peak is what both passes add to the resident set, each in a process of its own, with an allocator that gives
back what is freed. Times are medians of rounds that take turns in one process, and the median of the rounds' ratios
with the range of their middle half.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attention import SHAPES, Passes, Shape, seconds
from megatron_kaiyuan.backend.blocked import blocked_attention

KERNELS = ("math", "blocked")
_MIB = 1 << 20


def passes_of(kernel: str, shape: Shape) -> Passes:
    """Output and gradients, of inputs that are laid as the projection lays them."""
    drawn = torch.Generator().manual_seed(0)
    *parts, gradient = (
        torch.randn(shape.seq_length, shape.batch, heads, shape.head_size, generator=drawn)
        for heads in (shape.heads, shape.groups, shape.groups, shape.heads)
    )
    leaves = [part.requires_grad_() for part in parts]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if kernel == "blocked":
            return blocked_attention(query, key, value, None, None)
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    def passes() -> list[torch.Tensor]:
        output = attend(*(leaf.permute(1, 2, 0, 3) for leaf in leaves))
        return [output, *torch.autograd.grad(output, leaves, gradient.permute(1, 2, 0, 3))]

    return passes


def saved(passes: Passes, shape: Shape) -> int:
    """Bytes that autograd saves, without queries, keys and values."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        passes()
    inputs = 4 * shape.seq_length * shape.batch * (shape.heads + 2 * shape.groups) * shape.head_size
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - inputs


def added_peak(kernel: str, index: int) -> int:
    """Bytes that both passes add to the resident set of a process."""
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.blocked_attention", "--peak", kernel, str(index)]
    done = subprocess.run(command, env=os.environ | exact, capture_output=True, text=True, check=True)
    return int(done.stdout)


def print_added_peak(kernel: str, index: int) -> None:
    # Libraries that a first call loads.
    passes_of(kernel, Shape(256, 1, 4, 2, 8))()
    passes = passes_of(kernel, SHAPES["cpu"][index])
    before = _status("VmRSS")
    # The kernel's way to begin a new high-water mark of this process.
    Path("/proc/self/clear_refs").write_text("5")
    passes()
    print(_status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(index: int, rounds: int) -> None:
    shape = SHAPES["cpu"][index]
    kernels = {kernel: passes_of(kernel, shape) for kernel in KERNELS}
    results = [passes() for passes in kernels.values()]
    taken: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    for _ in range(rounds):
        for kernel, passes in kernels.items():
            taken[kernel].append(seconds(passes, "cpu"))
    ratios = [theirs / ours for theirs, ours in zip(taken["math"], taken["blocked"], strict=True)]
    low, middle, high = statistics.quantiles(ratios)
    peaks = {kernel: added_peak(kernel, index) for kernel in KERNELS}
    print(shape)
    for kernel, passes in kernels.items():
        print(
            f"  {kernel:<8} saved {saved(passes, shape) / _MIB:8.1f} MiB  peak {peaks[kernel] / _MIB:8.1f} MiB  "
            f"{1e3 * statistics.median(taken[kernel]):8.1f} ms"
        )
    distance = max(((one - other).norm() / one.norm()).item() for one, other in zip(*results, strict=True))
    print(
        f"  blocked: {peaks['math'] / peaks['blocked']:.1f} times less memory at the peak, {middle:.2f} times as fast "
        f"({low:.2f} to {high:.2f}), {distance:.0e} from the other",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak", nargs=2, metavar=("KERNEL", "SHAPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        return print_added_peak(given.peak[0], int(given.peak[1]))
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, FP32, load {os.getloadavg()[0]:.1f}")
    for index in range(len(SHAPES["cpu"])):
        measure(index, given.rounds)


if __name__ == "__main__":
    main()
