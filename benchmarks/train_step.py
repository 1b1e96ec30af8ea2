"""Tokens a second of a training step: `kaiyuan train` beside Hugging Face, Megatron Core and litgpt, in one run.

    pip install transformers litgpt
    python -m benchmarks.train_step                          # CPU: both shapes, FP32 and BF16, about ten minutes
    python -m benchmarks.train_step --shapes 10m --precisions fp32

All sides train networks of the same shape (layers, widths, heads and groups, vocabulary, untied head, QK-norm) on
batches of the same size: forward, backward, clipping, AdamW. Ours is the loop of `kaiyuan train` with its data, hooks
and log, without checkpoints: once with the whole network, whose four norms a layer and capped logits the others do not
have, and once with Qwen3's layers. The peers are given their tokens, and nothing is logged:

    hugging face     Qwen3ForCausalLM, SDPA, AdamW(fused=True). BF16: all in BF16, AdamW's moments too, and a second
                     time with FP32 weights under autocast, which is what ours computes
    megatron core    GPTModel with the stock local layers and optimizer, on our CPU platform
    litgpt           GPT with its own attention, AdamW(fused=True); precisions as Hugging Face's

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

VOCABULARY, SEQ_LENGTH, BATCH = 8192, 512, 4
OURS = "kaiyuan"


@dataclass(frozen=True)
class Shape:
    """A network: heads have 64 numbers."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int


SHAPES = {"10m": Shape(8, 256, 768, 4, 2), "33m": Shape(8, 512, 1536, 8, 4)}
PLAIN = {"sandwich_norm": False, "logits_soft_cap": None}
Step: TypeAlias = Callable[[], None]


def random_tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (BATCH, SEQ_LENGTH + 1), generator=torch.Generator().manual_seed(0))


def serve_kaiyuan(shape: Shape, precision: str, changes: dict[str, Any], pipe: Any) -> None:
    """The loop of `kaiyuan train`, one step at a time."""
    from benchmarks.monitor import session_of
    from megatron_kaiyuan.train.loop import fit

    model = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.groups,
        "kv_channels": 64,
        **changes,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        session_of(model, Path(folder), SEQ_LENGTH, BATCH, 200, precision, watched_every=0) as session,
    ):

        def step() -> None:
            session.end = session.state.progress.tokens + session.run.train.tokens_per_step
            fit(session)

        serve(step, session.state.network, pipe)


def serve_hugging_face(shape: Shape, precision: str, autocast: bool, pipe: Any) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=64,
        max_position_embeddings=SEQ_LENGTH,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    network = Qwen3ForCausalLM(config)

    def loss(tokens_bs: torch.Tensor) -> torch.Tensor:
        # It shifts its labels itself.
        return network(input_ids=tokens_bs[:, :-1], labels=tokens_bs[:, :-1]).loss

    serve_plain_torch(network, loss, precision, autocast, pipe)


def serve_litgpt(shape: Shape, precision: str, autocast: bool, pipe: Any) -> None:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=SEQ_LENGTH,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_query_groups=shape.groups,
        n_embd=shape.hidden,
        head_size=64,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_qk=True,
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.ffn,
    )
    network = GPT(config)

    def loss(tokens_bs: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(network(tokens_bs[:, :-1]), tokens_bs[:, 1:].contiguous(), chunk_size=0)

    serve_plain_torch(network, loss, precision, autocast, pipe)


def serve_plain_torch(
    network: torch.nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    precision: str,
    autocast: bool,
    pipe: Any,
) -> None:
    if precision == "bf16" and not autocast:
        network.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens_bs = random_tokens()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = loss(tokens_bs)
        found.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    serve(step, network, pipe)


def serve_megatron(shape: Shape, precision: str, pipe: Any) -> None:
    from megatron_kaiyuan import platform

    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        serve(*stock_megatron(shape, precision), pipe)


def stock_megatron(shape: Shape, precision: str) -> tuple[Step, torch.nn.Module]:
    from megatron.core import tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.transformer_config import TransformerConfig

    tensor_parallel.model_parallel_cuda_manual_seed(1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_query_groups=shape.groups,
        kv_channels=64,
        normalization="RMSNorm",
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        # These need Apex or CUDA.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )
    network = GPTModel(
        config,
        get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"),
        VOCABULARY,
        SEQ_LENGTH,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    parallel = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    inner = Float16Module(config, network) if precision == "bf16" else network
    models = [DistributedDataParallel(config, parallel, inner)]
    options = OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.1,
        adam_beta2=0.95,
        clip_grad=1.0,
        bf16=precision == "bf16",
        params_dtype=dtype,
        use_distributed_optimizer=True,
    )
    optimizer = get_megatron_optimizer(options, models, use_gloo_process_groups=False)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    tokens_bs = random_tokens()
    positions_bs = torch.arange(SEQ_LENGTH).expand(BATCH, -1)
    future_ss = torch.ones(1, 1, SEQ_LENGTH, SEQ_LENGTH, dtype=torch.bool).triu_(1)

    def forward(batches: Any, model: torch.nn.Module) -> Any:
        output = model(tokens_bs[:, :-1], positions_bs, future_ss, labels=tokens_bs[:, 1:])
        return output, lambda losses: (losses.float().mean(), {})

    def step() -> None:
        models[0].zero_grad_buffer()
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=models,
            num_microbatches=1,
            seq_length=SEQ_LENGTH,
            micro_batch_size=BATCH,
            forward_only=False,
        )
        optimizer.step()

    return step, network


def serve(step: Step, network: torch.nn.Module, pipe: Any) -> None:
    """Answer with the number of parameters, then each question with the seconds of one step."""
    for _ in range(2):  # the first ones allocate
        step()
    pipe.send(sum(parameter.numel() for parameter in network.parameters()))
    while pipe.recv():
        began = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - began)


def sides(shape: Shape, precision: str) -> dict[str, Callable[[Any], None]]:
    found: dict[str, Callable[[Any], None]] = {
        OURS: partial(serve_kaiyuan, shape, precision, {}),
        f"{OURS}, qwen3's layers": partial(serve_kaiyuan, shape, precision, PLAIN),
        "hugging face": partial(serve_hugging_face, shape, precision, False),
        "megatron core": partial(serve_megatron, shape, precision),
        "litgpt": partial(serve_litgpt, shape, precision, False),
    }
    if precision == "bf16":
        found["hugging face, autocast"] = partial(serve_hugging_face, shape, precision, True)
        found["litgpt, autocast"] = partial(serve_litgpt, shape, precision, True)
    return found


def run_side(side: Callable[[Any], None], pipe: Any) -> None:
    try:
        side(pipe)
    except ImportError as error:
        pipe.send(f"left out: {error}")
    except Exception:
        pipe.send(f"failed\n{traceback.format_exc()}")


def measure(name: str, precision: str, rounds: int, wanted: list[str]) -> None:
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    print(f"{name} in {precision}, {BATCH} x {SEQ_LENGTH} tokens, {rounds} rounds")
    for side, serving in sides(SHAPES[name], precision).items():
        if wanted and side not in [OURS, *wanted]:
            continue
        here, there = spawn.Pipe()
        process = spawn.Process(target=run_side, args=(serving, there), daemon=True)
        process.start()
        answer = here.recv()
        if isinstance(answer, str):
            print(f"  {side}: {answer}")
            if side == OURS:
                raise SystemExit(1)
            continue
        processes.append(process)
        pipes[side] = (here, answer)
    seconds: dict[str, list[float]] = {side: [] for side in pipes}
    for _ in range(rounds):
        for side, (pipe, _) in pipes.items():
            pipe.send(True)
            seconds[side].append(pipe.recv())
    for pipe, _ in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    for side, taken in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(taken, seconds[OURS], strict=True)]
        low, middle, high = statistics.quantiles(ratios)
        speed = BATCH * SEQ_LENGTH / statistics.median(taken)
        compared = "" if side == OURS else f": ours is {middle:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(f"  {side:<24} {pipes[side][1] / 1e6:5.1f} M parameters  {speed:7,.0f} tokens/s{compared}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--sides", nargs="+", default=[], help="these peers only")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core"))
    print(f"{packages}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in given.shapes:
        for precision in given.precisions:
            measure(name, precision, given.rounds, given.sides)


if __name__ == "__main__":
    main()
