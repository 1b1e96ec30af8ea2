"""The head with its loss: time and memory beside what one would write, in one run.

    python -m benchmarks.head
    python -m benchmarks.head --platform cuda --precisions bf16 --vocabulary 151936 --hidden 2048 --tokens 8192

Both compute a linear layer, capped logits and the cross-entropy of each token, and go back to input and weight.
Plainly: `cross_entropy(cap * tanh(logits.float() / cap), labels)`, which keeps capped logits in FP32 and passes over
them a dozen times. Ours: `backend/operations.py`, which has the logits once, in the precision of the product. Memory is
what a side takes above its inputs at most, in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from megatron_kaiyuan.platform.precisions import DTYPES

CAP = 30.0
SIDES = ("plain", "ours")


def peak_bytes(platform: str) -> int:
    if platform == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def loss_of(side: str, platform: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if side == "plain":
        return lambda logits_tv, labels_t: torch.nn.functional.cross_entropy(
            CAP * torch.tanh(logits_tv.float() / CAP), labels_t
        )
    from megatron.core import parallel_state

    from megatron_kaiyuan.backend.choose import choose
    from megatron_kaiyuan.backend.operations import cross_entropy
    from megatron_kaiyuan.config import BackendConfig
    from megatron_kaiyuan.platform import current

    formulas, group = choose(BackendConfig(), current()).loss, parallel_state.get_tensor_model_parallel_group()
    return lambda logits_tv, labels_t: cross_entropy(logits_tv, labels_t, CAP, group, formulas)[0].mean()


def serve(side: str, given: argparse.Namespace, precision: str, pipe: Any) -> None:
    """Answer with bytes and the loss, then each question with the seconds of both passes."""
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(platform.activate(given.platform)):
        drawn, dtype = torch.Generator().manual_seed(0), DTYPES[precision]
        place = {"device": given.platform, "dtype": dtype}
        values = torch.randn(given.tokens, given.hidden, generator=drawn).to(**place).requires_grad_()
        weight = torch.randn(given.vocabulary, given.hidden, generator=drawn).div_(given.hidden**0.5)
        weight = weight.to(**place).requires_grad_()
        labels_t = torch.randint(given.vocabulary, (given.tokens,), generator=drawn).to(given.platform)
        loss = loss_of(side, given.platform)
        (values[:8] @ weight.t()).sum().backward()
        values.grad = weight.grad = None

        def both() -> float:
            found = loss(values @ weight.t(), labels_t)
            found.backward()
            values.grad = weight.grad = None
            return found.item()

        before = peak_bytes(given.platform)
        outcome = both()
        pipe.send((peak_bytes(given.platform) - before, outcome))
        while pipe.recv():
            began = time.perf_counter()
            both()
            pipe.send(time.perf_counter() - began)


def measure(given: argparse.Namespace, precision: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    pipes, memory, loss = {}, {}, {}
    for side in SIDES:
        pipes[side], there = spawn.Pipe()
        spawn.Process(target=serve, args=(side, given, precision, there), daemon=True).start()
        memory[side], loss[side] = pipes[side].recv()
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(given.rounds):
        for side, pipe in pipes.items():
            pipe.send(True)
            seconds[side].append(pipe.recv())
    for side in SIDES:
        pipes[side].send(False)
        taken = statistics.median(seconds[side])
        print(f"  {side:<6} {1e3 * taken:9.1f} ms  {memory[side] / (1 << 20):9.1f} MiB  loss {loss[side]:.5f}")
    low, middle, high = statistics.quantiles(a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True))
    part = memory["ours"] / memory["plain"]
    print(f"  ours is {middle:.2f} times as fast ({low:.2f} to {high:.2f}), in {part:.0%} of the memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    for precision in given.precisions:
        print(f"{precision}, {given.tokens} tokens, {given.hidden} to {given.vocabulary}")
        measure(given, precision)


if __name__ == "__main__":
    main()
