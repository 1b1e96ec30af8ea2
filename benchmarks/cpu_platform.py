"""What it costs to intercept torch calls: a training step on the CPU platform, and the same step under interception.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu_platform

Megatron Core names CUDA devices on its way. Ours gives its modules a copy of `torch` that reads them as the CPU, and
what the network calls goes straight to torch. The usual way is a TorchFunctionMode: every call of torch enters Python
first, to look for a device that has to be changed. Here it finds none left to change: what differs is its presence.

A round is one step of each, forward to update, in turns and in one process. Printed are medians over the rounds, by the
clock and in CPU time, which other work on the machine disturbs less; and the median of the rounds' ratios, with the
range of their middle half.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SIZES = {
    "small": {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16, "seq_length": 64},
    "medium": {"num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 768, "kv_channels": 64, "seq_length": 256},
}
VOCABULARY = 2048
BATCH = 2


class InterceptCuda(TorchFunctionMode):
    """Reads `device="cuda"` as `"cpu"` in every call of torch."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        kwargs = kwargs or {}
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def build(size: dict[str, int], platform: Any) -> Any:
    """The training state of a small network, FP32."""
    from megatron_kaiyuan.config import RunConfig
    from megatron_kaiyuan.config.load import parse
    from megatron_kaiyuan.train.start import build_state

    model = {"preset": "kaiyuan-tiny", "vocab_size": VOCABULARY, **size}
    train = {"seq_length": model.pop("seq_length"), "micro_batch_size": BATCH, "global_batch_size": BATCH}
    phases = [{"path": "unused", "peak_lr": 1e-3}]
    content = {"run_dir": Path("unused"), "platform": "cpu", "model": model, "data": {"phases": phases}, "train": train}
    return build_state(parse(RunConfig, content, "benchmark"), platform)


def passes(
    models: list[Any],
    optimizer: Any,
    tokens_bs: torch.Tensor,
    labels_bs: torch.Tensor,
    mask: Any,
    micro_batch: int | None = None,
) -> None:
    """Forward and backward over micro-batches (default: one), and the reduction of gradients."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    size = micro_batch or len(tokens_bs)
    parts = list(zip(tokens_bs.split(size), labels_bs.split(size), strict=True))

    def forward(batches: Any, model: torch.nn.Module) -> Any:
        inputs_bs, wanted_bs = next(batches)
        positions_bs = torch.arange(inputs_bs.size(1), device=inputs_bs.device).expand_as(inputs_bs)
        output = model(inputs_bs, positions_bs, mask, labels=wanted_bs)
        return output, lambda losses: (losses.float().mean(), {})

    models[0].zero_grad_buffer()
    optimizer.zero_grad()
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(parts),
        model=models,
        num_microbatches=len(parts),
        seq_length=tokens_bs.size(1),
        micro_batch_size=size,
        forward_only=False,
    )


def step(state: Any, tokens_bs: torch.Tensor) -> None:
    """What `train/step.py` does, without reading and without logging."""
    from megatron_kaiyuan.optim.update import apply_update, clip_gradients, measure_gradients

    passes(state.models, state.optimizer, tokens_bs, tokens_bs, None)
    _, gradient_norm = measure_gradients(state.optimizer, overflowed=False)
    clip_gradients(state.optimizer, gradient_norm)
    apply_update(state.optimizer)


def seconds(action: Any) -> tuple[float, float]:
    """By the clock, and of this process's CPU time."""
    clock, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - cpu


def measure(name: str, platform: Any, rounds: int) -> None:
    size = SIZES[name]
    state = build(size, platform)
    drawn = torch.Generator().manual_seed(0)
    tokens_bs = torch.randint(VOCABULARY, (BATCH, size["seq_length"]), generator=drawn)
    work = partial(step, state, tokens_bs)
    straight: list[tuple[float, float]] = []
    intercepted: list[tuple[float, float]] = []
    mode = InterceptCuda()
    for number in range(rounds + 2):
        for times, context in ((straight, nullcontext()), (intercepted, mode)):
            with context:
                taken = seconds(work)
            if number >= 2:  # the first ones allocate
                times.append(taken)
    parameters = sum(parameter.numel() for parameter in state.network.parameters())
    print(
        f"{name}: {parameters / 1e6:.1f} M parameters, {tokens_bs.numel():,} tokens, "
        f"{mode.calls / (rounds + 2):,.0f} calls intercepted a step"
    )
    for kind, ours, theirs in zip(
        ("clock", "CPU"), zip(*straight, strict=True), zip(*intercepted, strict=True), strict=True
    ):
        ratios = [slow / fast for slow, fast in zip(theirs, ours, strict=True)]
        low, median, high = statistics.quantiles(ratios)
        ours_ms, theirs_ms = (1e3 * statistics.median(times) for times in (ours, theirs))
        print(
            f"    {kind:5}  ours {ours_ms:9.2f} ms, intercepted {theirs_ms:9.2f} ms a step: "
            f"{median:.3f} times ours ({low:.3f} to {high:.3f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step on CPU, with and without interception of torch calls")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--size", choices=SIZES, help="default: all")
    arguments = parser.parse_args()
    from megatron_kaiyuan import platform

    device = platform.activate("cpu")
    from importlib.metadata import version

    from megatron_kaiyuan.cluster.groups import single_process

    print(
        f"torch {torch.__version__}, megatron-core {version('megatron-core')}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )
    with single_process(device):
        for name in [arguments.size] if arguments.size else SIZES:
            measure(name, device, arguments.rounds)


if __name__ == "__main__":
    main()
