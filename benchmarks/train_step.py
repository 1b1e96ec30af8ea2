"""Tokens a second of a training step: `kaiyuan train` beside Hugging Face, Megatron Core and litgpt, in one run.

    pip install transformers litgpt
    python -m benchmarks.train_step                          # CPU: both shapes, FP32 and BF16, about ten minutes
    python -m benchmarks.train_step --shapes 10m --precisions fp32
    pip install liger-kernel
    python -m benchmarks.train_step --platform cuda          # one H100 or H200: 0.5 B and Kaiyuan-2B, half an hour

All sides train networks of the same shape (layers, widths, heads and groups, vocabulary, untied head, QK-norm) on
batches of the same size: forward, backward, clipping, AdamW. Ours is the loop of `kaiyuan train` with its data, hooks
and log, without checkpoints: once with the whole network, whose four norms a layer and capped logits the others do not
have, and once with Qwen3's layers. The peers are given their tokens, and nothing is logged:

    hugging face     Qwen3ForCausalLM, SDPA, AdamW(fused=True). BF16: all in BF16, AdamW's moments too, and a second
                     time with FP32 weights under autocast, which is what ours computes
    ..., compiled    the same, each layer by torch.compile; on a GPU only
    megatron core    GPTModel with the stock local layers and optimizer, on our CPU platform
    litgpt           GPT with its own attention, AdamW(fused=True); precisions as Hugging Face's
    with liger       Hugging Face's network with Liger's kernels; on a GPU only

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
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from megatron_kaiyuan.config import BackendConfig
from megatron_kaiyuan.platform.precisions import DTYPES

OURS = "kaiyuan"


@dataclass(frozen=True)
class Shape:
    """A network and what it is trained on in a step."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_size: int = 64
    vocabulary: int = 8192
    seq_length: int = 512
    batch: int = 4
    micro_batch: int = 4


@dataclass(frozen=True)
class Case:
    shape: Shape
    precision: str
    platform: str

    @property
    def tokens(self) -> int:
        return self.shape.batch * self.shape.seq_length


SHAPES = {
    "cpu": {"10m": Shape(8, 256, 768, 4, 2), "33m": Shape(8, 512, 1536, 8, 4)},
    "cuda": {
        "0.5b": Shape(24, 1024, 3072, 16, 8, 128, 151936, 4096, 8, 4),
        "kaiyuan-2b": Shape(28, 2048, 6144, 16, 8, 128, 151936, 4096, 8, 2),
    },
}
PRECISIONS = {"cpu": ["fp32", "bf16"], "cuda": ["bf16", "fp16"]}
PLAIN = {"sandwich_norm": False, "logits_soft_cap": None}
Step: TypeAlias = Callable[[], None]


def random_tokens(case: Case) -> torch.Tensor:
    shape, drawn = case.shape, torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary, (shape.batch, shape.seq_length + 1), generator=drawn).to(case.platform)


def recipe_of(shape: Shape) -> dict[str, Any]:
    """The section `model` of a recipe."""
    return {
        "preset": "kaiyuan-tiny",
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.groups,
        "kv_channels": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.seq_length,
    }


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


def serve_hugging_face(case: Case, autocast: bool, liger: bool, compiled: bool, pipe: Any) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = case.shape
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.head_size,
        max_position_embeddings=shape.seq_length,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    network = Qwen3ForCausalLM(config)
    for layer in network.model.layers if compiled else ():
        layer.compile()

    def loss(tokens_bs: torch.Tensor) -> torch.Tensor:
        # It shifts its labels itself.
        return network(input_ids=tokens_bs[:, :-1], labels=tokens_bs[:, :-1]).loss

    serve_plain_torch(case, network, loss, autocast, pipe)


def serve_litgpt(case: Case, autocast: bool, compiled: bool, pipe: Any) -> None:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = case.shape
    config = Config(
        block_size=shape.seq_length,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_query_groups=shape.groups,
        n_embd=shape.hidden,
        head_size=shape.head_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_qk=True,
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.ffn,
    )
    network = GPT(config)
    for layer in network.transformer.h if compiled else ():
        layer.compile()

    def loss(tokens_bs: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(network(tokens_bs[:, :-1]), tokens_bs[:, 1:].contiguous(), chunk_size=0)

    serve_plain_torch(case, network, loss, autocast, pipe)


def serve_plain_torch(
    case: Case, network: torch.nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], autocast: bool, pipe: Any
) -> None:
    dtype, micro_batch = DTYPES[case.precision], case.shape.micro_batch
    pipe.recv()
    network.to(case.platform, torch.float32 if autocast else dtype)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler(case.platform, enabled=case.precision == "fp16")
    tokens_bs = random_tokens(case)

    def step() -> None:
        for part_bs in tokens_bs.split(micro_batch):
            with torch.autocast(case.platform, dtype, enabled=autocast):
                found = loss(part_bs) * (len(part_bs) / len(tokens_bs))
            scaler.scale(found).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    serve(case, step, network, pipe)


def serve_megatron(case: Case, pipe: Any) -> None:
    pipe.recv()
    from megatron_kaiyuan import platform

    device = platform.activate(case.platform)
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        network = stock_network(case)
        serve(case, stock_step(case, network), network, pipe)


def stock_network(case: Case) -> Any:
    """Megatron Core's GPTModel with the layers of its own that need no Transformer Engine."""
    from megatron.core import tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from megatron_kaiyuan.config import ModelConfig, ParallelConfig
    from megatron_kaiyuan.model.build import transformer_config

    tensor_parallel.model_parallel_cuda_manual_seed(1)
    # What the shape says is ours too; the activation is a slot that stock layers leave empty.
    config = transformer_config(ModelConfig(**recipe_of(case.shape)), ParallelConfig(), case.precision)
    config.use_te_activation_func = False
    return GPTModel(
        config,
        get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"),
        case.shape.vocabulary,
        case.shape.seq_length,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    ).to(case.platform)


def stock_step(case: Case, network: Any) -> Step:
    """A step of Megatron Core's own optimizer, with its mask."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    from benchmarks.cpu_platform import passes

    config = network.config
    parallel = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    inner = network if case.precision == "fp32" else Float16Module(config, network)
    models = [DistributedDataParallel(config, parallel, inner)]
    options = OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.1,
        adam_beta2=0.95,
        clip_grad=1.0,
        bf16=config.bf16,
        fp16=config.fp16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=True,
    )
    optimizer = get_megatron_optimizer(options, models, use_gloo_process_groups=False)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    tokens_bs, length = random_tokens(case), case.shape.seq_length
    future = torch.ones(1, 1, length, length, dtype=torch.bool, device=case.platform).triu_(1)

    micro_batch = case.shape.micro_batch if case.platform == "cpu" else 1

    def step() -> None:
        passes(models, optimizer, tokens_bs[:, :-1], tokens_bs[:, 1:], future, micro_batch)
        optimizer.step()

    return step


def serve(case: Case, step: Step, network: torch.nn.Module, pipe: Any, flops_per_token: float | None = None) -> None:
    """Answer with what the side is, then each question with the seconds of one step and the largest memory in GiB."""
    on_gpu = case.platform == "cuda"

    def finished_step() -> None:
        step()
        if on_gpu:
            torch.cuda.synchronize()

    for _ in range(2):  # the first ones allocate
        finished_step()
    pipe.send((sum(parameter.numel() for parameter in network.parameters()), flops_per_token))
    while pipe.recv():
        began = time.perf_counter()
        finished_step()
        pipe.send((time.perf_counter() - began, torch.cuda.max_memory_allocated() / (1 << 30) if on_gpu else 0.0))


def sides(case: Case) -> dict[str, Callable[[Any], None]]:
    found: dict[str, Callable[[Any], None]] = {
        OURS: partial(serve_kaiyuan, case, {}, {}),
        f"{OURS}, qwen3's layers": partial(serve_kaiyuan, case, PLAIN, {}),
        "megatron core": partial(serve_megatron, case),
    }
    if case.precision != "fp16":  # FP16 weights alone do not train
        found["hugging face"] = partial(serve_hugging_face, case, False, False, False)
        found["litgpt"] = partial(serve_litgpt, case, False, False)
    if case.precision != "fp32":
        found["hugging face, autocast"] = partial(serve_hugging_face, case, True, False, False)
        found["litgpt, autocast"] = partial(serve_litgpt, case, True, False)
    if case.platform == "cuda":
        found[f"{OURS}, recorded"] = partial(serve_kaiyuan, case, {}, {"passes": "recorded"})
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
