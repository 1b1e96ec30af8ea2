"""The class in a folder of `--format kaiyuan`: the trained network's logits in every precision, generation, servers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.export import export_model, load_network
from megatron_kaiyuan.export.huggingface import Form
from tests.helpers.files.word_tokenizer import write_tokenizer
from tests.helpers.references.network import SHAPE, numbered, random_weights, reference_logits

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# In units of the precision's rounding; measured with these weights: at most 13 (FP32), 0.4 (BF16) and 3.1 (FP16).
ROUNDING, BOUND = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}, 32
ADDITIONS: dict[str, dict[str, Any]] = {
    "kaiyuan": {},
    "qwen3": {"sandwich_norm": False, "logits_soft_cap": None},
    "all-in-fp32": {"embedding_norm": True, "fp32_residual": True, "fp32_head": True},
    "no-qk-norm": {"qk_layernorm": False, "fp32_residual": True},
    "head": {"fp32_head": True, "logits_soft_cap": None, "embedding_norm": True},
}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


def weights_of(model: ModelConfig) -> dict[str, torch.Tensor]:
    weights = random_weights(model, seed=1)
    if model.embedding_norm:
        weights["embedding.norm.weight"] = 0.5 + torch.rand(
            model.hidden_size, generator=torch.Generator().manual_seed(2)
        )
    if not model.qk_layernorm:
        weights = {
            name: tensor for name, tensor in weights.items() if ".q_layer" not in name and ".k_layer" not in name
        }
    return weights


def token_ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 97), generator=torch.Generator().manual_seed(3))


def trained_logits(model: ModelConfig, weights: dict[str, torch.Tensor], precision: str) -> torch.Tensor:
    from megatron_kaiyuan.model.build import build_model, transformer_config

    network = build_model(model, transformer_config(model, ParallelConfig(), precision)).eval()
    missing = network.load_state_dict(numbered(weights), strict=False)
    assert missing.unexpected_keys == []
    ids_bs = token_ids()
    with torch.no_grad():
        return network(ids_bs, torch.arange(ids_bs.shape[1]).expand(2, -1), None)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("additions", ADDITIONS)
def test_logits_are_those_of_the_trained_network(additions: str, precision: str, tmp_path: Path) -> None:
    model = ModelConfig(**{**SHAPE, **ADDITIONS[additions]})
    weights, dtype = weights_of(model), getattr(torch, DTYPES[precision])
    expected = trained_logits(model, {name: tensor.to(dtype) for name, tensor in weights.items()}, precision)
    folder = export_model(weights, model, tmp_path / "model", None, form=Form("kaiyuan", DTYPES[precision]))
    with torch.no_grad():
        found = load_network(folder, dtype=DTYPES[precision])(token_ids()).logits
    assert found.dtype == expected.dtype
    error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
    print(f"{additions} {precision}: relative difference {error:.1e}, rounding is {ROUNDING[precision]:.1e}")
    assert error <= BOUND * ROUNDING[precision]


def test_each_attention_of_transformers_gives_the_logits_of_the_definition(tmp_path: Path) -> None:
    model = ModelConfig(**SHAPE)
    weights = weights_of(model)
    folder = export_model(weights, model, tmp_path / "model", None, form=Form("kaiyuan"))
    expected = reference_logits(weights, model, token_ids())
    network = load_network(folder)
    for name in ("sdpa", "eager"):
        network.config._attn_implementation = name
        with torch.no_grad():
            difference = (network(token_ids()).logits - expected).abs().max()
        assert difference <= 1e-4 * expected.abs().max(), name


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("kaiyuan")
    model = ModelConfig(**{**SHAPE, "embedding_norm": True})
    tokenizer = write_tokenizer(folder / "tokenizer", vocabulary=40)
    return load_network(export_model(weights_of(model), model, folder / "model", tokenizer, form=Form("kaiyuan")))


def test_generation_with_a_cache_is_the_full_forward_pass(network: Any) -> None:
    ids_bs = token_ids()[:1, :7]
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached = network.generate(ids_bs, **options)
    assert torch.equal(cached, network.generate(ids_bs, **options, use_cache=False))
    by_hand = ids_bs
    for _ in range(12):
        by_hand = torch.cat([by_hand, network(by_hand, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, by_hand)


def test_prompts_of_several_lengths_generate_as_each_alone(network: Any) -> None:
    assert network.generation_config.pad_token_id == 0
    short, long = token_ids()[0, :5], token_ids()[1, :9]
    batch = torch.stack([torch.cat([torch.zeros(4, dtype=torch.long), short]), long])
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    together = network.generate(batch, attention_mask=mask, **options)
    for row, prompt in zip(together, (short, long), strict=True):
        assert torch.equal(row[9:], network.generate(prompt[None], **options)[0, len(prompt) :])


def test_it_is_trained_further_like_any_class_of_transformers(network: Any) -> None:
    ids_bs = token_ids()
    output = network(ids_bs, labels=ids_bs, output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids_bs[:, 1:].flatten())
    assert torch.allclose(output.loss, expected, atol=1e-5)
    assert len(output.hidden_states) == network.config.num_hidden_layers + 1
    kept = network(ids_bs, logits_to_keep=2).logits
    assert torch.allclose(kept, output.logits[:, -2:], atol=1e-4)
    network.train()
    network.gradient_checkpointing_enable()
    network(ids_bs, labels=ids_bs, use_cache=False).loss.backward()
    network.gradient_checkpointing_disable()
    network.eval()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.zero_grad()


def test_servers_reach_attention_through_the_interface(network: Any) -> None:
    """vLLM and SGLang call the base model so, and register a function of a name of their own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        calls.append((module.layer_idx, options["scaling"], options["attention_instances"], mask))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, is_causal=True, **options)

    ALL_ATTENTION_FUNCTIONS.register("server", attend)
    before, ids_bs = network.config._attn_implementation, token_ids()[:1]
    network.config._attn_implementation = "server"
    with torch.no_grad():
        hidden = network.model(
            input_ids=ids_bs,
            position_ids=torch.arange(ids_bs.shape[1])[None],
            use_cache=False,
            return_dict=False,
            attention_instances="theirs",
        )[0]
    network.config._attn_implementation = before
    layers = network.config.num_hidden_layers
    assert calls == [(index, network.config.head_dim**-0.5, "theirs", None) for index in range(layers)]
    assert torch.allclose(network.model(ids_bs).last_hidden_state, hidden, atol=1e-5)
    assert network._supports_attention_backend


def test_plans_name_every_linear_and_every_child(network: Any) -> None:
    import re

    config = network.config
    linears = {name for name, module in network.model.named_modules() if isinstance(module, torch.nn.Linear)}
    patterns = [pattern.replace(".", r"\.").replace("*", r"\d+") for pattern in config.base_model_tp_plan]
    assert linears and all(any(re.fullmatch(pattern, name) for pattern in patterns) for name in linears)
    assert list(config.base_model_pp_plan) == [name for name, _ in network.model.named_children()]


def test_its_file_needs_torch_and_transformers_only_and_has_what_vllm_looks_for() -> None:
    from megatron_kaiyuan.export import modeling_kaiyuan

    tree = ast.parse(Path(modeling_kaiyuan.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).split(".")[0] for name in imported} == {"inspect", "typing", "torch", "transformers"}
    # vLLM 0.32 looks for one local name that is assigned from ALL_ATTENTION_FUNCTIONS, and called once.
    (attention,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "KaiyuanAttention"
    )
    (forward,) = (node for node in attention.body if isinstance(node, ast.FunctionDef) and node.name == "forward")
    (name,) = (
        node.targets[0].id  # type: ignore[attr-defined]
        for node in ast.walk(forward)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("ALL_ATTENTION_FUNCTIONS")
    )
    calls = [node for node in ast.walk(forward) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]
    assert len(calls) == 1 and "scaling" in {keyword.arg for keyword in calls[0].keywords}
