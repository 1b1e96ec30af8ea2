"""Tokens a second of a training step: `kaiyuan train` beside other trainers, in one run.

    pip install transformers docstring-parser
    pip install --no-deps litgpt lightning lightning-utilities torchmetrics jsonargparse typeshed-client
    pip install --no-deps torchtitan==0.3.0 spmd-types==0.2.3 tyro      # and triton, where torch brings none
    python -m benchmarks.train_step                          # CPU: both shapes, FP32 and BF16, about ten minutes
    python -m benchmarks.train_step --shapes 10m --precisions fp32
    pip install liger-kernel
    python -m benchmarks.train_step --platform cuda          # one H100 or H200: 0.5 B and Kaiyuan-2B, half an hour

Without --no-deps litgpt brings a huggingface-hub, and torchtitan a datasets, that are too old for the rest.

All sides train networks of the same shape (layers, widths, heads and groups, vocabulary, untied head, QK-norm) on
batches of the same size: forward, backward, clipping, AdamW. Ours is the loop of `kaiyuan train` with its data, hooks
and log, without checkpoints: once with the whole network, whose four norms a layer and capped logits the others do not
have, and once with Qwen3's layers; on a CPU also with norms, SwiGLU, rotation and loss by torch.compile. The peers are
given their tokens, and nothing is logged:

    hugging face     Qwen3ForCausalLM, SDPA, AdamW(fused=True). BF16: all in BF16, AdamW's moments too, and a second
                     time with FP32 weights under autocast, which is what ours computes
    ..., compiled    the same, each layer by torch.compile; on a GPU only
    megatron core    GPTModel with the stock local layers and optimizer, on our CPU platform
    litgpt           GPT with its own attention, AdamW(fused=True); precisions as Hugging Face's
    with liger       Hugging Face's network with Liger's kernels; on a GPU only
    torchtitan       Qwen3Model with its loss in eight chunks and AdamW(fused=True), nothing recomputed. In FSDP, as
                     its trainer has it on one device too: FP32 weights and gradients, each layer in BF16 without
                     autocast; no FP16. On a GPU with FlexAttention, layers and loss by torch.compile, and a second
                     time recorded as CUDA graphs, its trainer's default; on a CPU with SDPA, the one it can train
                     with there. Needs a newer torch than 2.11

FP16 is autocast with a loss scaler for the peers. On a GPU a step accumulates the gradients of micro-batches; stock
Megatron Core, whose attention keeps all scores, has them of one sequence there. Peak memory and TFLOP/s are printed,
with attention over all pairs of tokens, as papers count, and their part of --peak-tflops.

Each side is a process of its own. A round is one step of each side in turn; printed is the median of the rounds, and
the median of the rounds' ratios with the range of their middle half. A side whose package is missing is left out, and
says so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.train_step_case import Case, Shape, recipe_of, serve
from benchmarks.train_step_peers import serve_hugging_face, serve_litgpt, serve_megatron, serve_torchtitan
from megatron_kaiyuan.config import BackendConfig
from megatron_kaiyuan.platform.precisions import DTYPES

OURS = "kaiyuan"
SHAPES = {
    "cpu": {"10m": Shape(8, 256, 768, 4, 2), "33m": Shape(8, 512, 1536, 8, 4)},
    "cuda": {
        "0.5b": Shape(24, 1024, 3072, 16, 8, 128, 151936, 4096, 8, 4),
        "kaiyuan-2b": Shape(28, 2048, 6144, 16, 8, 128, 151936, 4096, 8, 2),
    },
}
PRECISIONS = {"cpu": ["fp32", "bf16"], "cuda": ["bf16", "fp16"]}
PLAIN = {"sandwich_norm": False, "logits_soft_cap": None}


def serve_kaiyuan(case: Case, changes: dict[str, Any], backend: dict[str, str], pipe: Any) -> None:
    """The loop of `kaiyuan train`, one step at a time."""
    pipe.recv()
    from benchmarks.monitor import session_of
    from megatron_kaiyuan.planning.speed import flops_per_token
    from megatron_kaiyuan.train.loop import fit

    shape = case.shape
    model, size = recipe_of(shape) | changes, (shape.seq_length, shape.batch, 50)
    # As it is run: on a GPU with the monitor at k = 10.
    every = 0 if case.platform == "cpu" else 10
    with (
        tempfile.TemporaryDirectory() as folder,
        session_of(
            model,
            Path(folder),
            *size,
            case.precision,
            every,
            case.platform,
            shape.micro_batch,
            {"backend": backend},
        ) as session,
    ):

        def step() -> None:
            session.end = session.state.progress.tokens + session.run.train.tokens_per_step
            fit(session)

        serve(case, step, session.state.network, pipe, flops_per_token(session.run, causal=False))


def sides(case: Case) -> dict[str, Callable[[Any], None]]:
    found: dict[str, Callable[[Any], None]] = {
        OURS: partial(serve_kaiyuan, case, {}, {}),
        f"{OURS}, qwen3's layers": partial(serve_kaiyuan, case, PLAIN, {}),
        "megatron core": partial(serve_megatron, case),
    }
    if case.precision != "fp16":  # FP16 weights alone do not train
        found["hugging face"] = partial(serve_hugging_face, case, False, False, False)
        found["litgpt"] = partial(serve_litgpt, case, False, False)
        if case.platform == "cpu":
            found["torchtitan"] = partial(serve_torchtitan, case, False, False)
        else:
            found["torchtitan, compiled"] = partial(serve_torchtitan, case, True, False)
            found["torchtitan, compiled, recorded"] = partial(serve_torchtitan, case, True, True)
    if case.precision != "fp32":
        found["hugging face, autocast"] = partial(serve_hugging_face, case, True, False, False)
        found["litgpt, autocast"] = partial(serve_litgpt, case, True, False)
    if case.platform == "cpu":
        compiled = dict.fromkeys(("norm", "swiglu", "rope", "loss"), "compiled")
        found[f"{OURS}, compiled"] = partial(serve_kaiyuan, case, {}, compiled)
    else:
        found[f"{OURS}, CUDA graphs"] = partial(serve_kaiyuan, case, {}, {"passes": "cuda_graphs"})
        found[f"{OURS}, torch's kernels"] = partial(
            serve_kaiyuan, case, {}, dict.fromkeys(BackendConfig.model_fields, "torch")
        )
        found["hugging face with liger, autocast"] = partial(serve_hugging_face, case, True, True, False)
        found["hugging face, autocast, compiled"] = partial(serve_hugging_face, case, True, False, True)
        found["litgpt, autocast, compiled"] = partial(serve_litgpt, case, True, True)
    return found


def run_side(side: Callable[[Any], None], pipe: Any) -> None:
    try:
        side(pipe)
    except ImportError as error:
        pipe.send(f"left out: {error}")
    except torch.OutOfMemoryError as error:
        pipe.send(f"out of memory: {str(error).partition('. ')[0]}")
    except Exception:
        pipe.send(f"failed\n{traceback.format_exc()}")


def measure(case: Case, rounds: int, wanted: list[str], peak_tflops: float) -> None:
    """On a CPU in turns; on a GPU, whose memory holds one side at a time, one side after the other."""
    started = start_sides({side: serve for side, serve in sides(case).items() if not wanted or side in [OURS, *wanted]})
    groups = [started] if case.platform == "cpu" else [{side: pipe} for side, pipe in started.items()]
    seconds: dict[str, list[float]] = {}
    flops = 0.0
    for group in groups:
        pipes = let_go(group)
        for side, (_, (_, own)) in pipes.items():
            seconds[side] = []
            flops = own or flops
        for _ in range(rounds):
            for side, (pipe, _) in pipes.items():
                pipe.send(True)
                taken, memory = pipe.recv()
                seconds[side].append(taken)
        for side, (pipe, (parameters, _)) in pipes.items():
            pipe.send(False)
            speed = case.tokens / statistics.median(seconds[side])
            line = f"  {side:<33} {parameters / 1e6:7.1f} M parameters  {speed:8,.0f} tokens/s"
            if case.platform == "cuda":
                tflops = speed * flops / 1e12
                line += f"  {tflops:4.0f} TFLOP/s, {tflops / peak_tflops:.1%} of the peak, {memory:.1f} GiB"
            if side != OURS:
                ratios = [theirs / ours for theirs, ours in zip(seconds[side], seconds[OURS], strict=True)]
                low, middle, high = statistics.quantiles(ratios)
                line += f": ours is {middle:.2f} times as fast ({low:.2f} to {high:.2f})"
            print(line, flush=True)


def start_sides(sides: dict[str, Callable[[Any], None]]) -> dict[str, Any]:
    """A process for each, which builds what needs no device and waits; by name its pipe."""
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    for side, serving in sides.items():
        pipes[side], there = spawn.Pipe()
        spawn.Process(target=run_side, args=(serving, there), daemon=True).start()
    return pipes


def let_go(started: dict[str, Any]) -> dict[str, tuple[Any, tuple[int, float | None]]]:
    """Let sides take the device, one after the other; by name the pipe, the parameters and the FLOPs of a token."""
    pipes = {}
    for side, here in started.items():
        # A side whose package is missing has answered already, and is gone.
        with suppress(BrokenPipeError):
            here.send(True)
        answer = here.recv()
        if isinstance(answer, str):
            print(f"  {side}: {answer}", flush=True)
            if side == OURS:
                raise SystemExit(1)
            continue
        pipes[side] = (here, answer)
    return pipes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=SHAPES, default="cpu")
    parser.add_argument("--shapes", nargs="+", default=[], help="default: all of the platform")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=[])
    parser.add_argument("--sides", nargs="+", default=[], help="these peers only")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak-tflops", type=float, default=989.4, help="dense, of an H100 or H200 in half precision")
    given = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core"))
    device = torch.cuda.get_device_name() if given.platform == "cuda" else f"{os.cpu_count()} cores"
    print(f"{packages}, {device}, load {os.getloadavg()[0]:.1f}")
    shapes = SHAPES[given.platform]
    for name in given.shapes or shapes:
        for precision in given.precisions or PRECISIONS[given.platform]:
            case = Case(shapes[name], precision, given.platform)
            print(f"{name} in {precision}, {case.shape.batch} x {case.shape.seq_length} tokens, {given.rounds} rounds")
            measure(case, given.rounds, given.sides, given.peak_tflops)


if __name__ == "__main__":
    main()
