"""Weights of a new run out of a Hugging Face Qwen3 folder, in one process; tests/train has ranks and our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_checkpoint import make_step

SHAPE = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "vocab_size": 250,
    "max_position_embeddings": 128,
}
PLAIN = {"sandwich_norm": False, "logits_soft_cap": None}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


def write_qwen3(folder: Path, vocab_size: int = 256, tied: bool = False, **changes: object) -> Path:
    """A random Qwen3 with norms that are not all one."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    network = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
            rms_norm_eps=1e-6,
            tie_word_embeddings=tied,
            dtype="float32",
        )
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + ("norm" in name))
    network.save_pretrained(folder, max_shard_size=changes.pop("max_shard_size", "5GB"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def start_from(folder: Path, **model: object) -> tuple[Any, list[str]]:
    from megatron_kaiyuan.checkpoint.initial import initialise
    from megatron_kaiyuan.model.build import Network, build_model, transformer_config

    config = ModelConfig(**{**SHAPE, **model})
    network = build_model(config, transformer_config(config, ParallelConfig()))
    return network.eval(), initialise(Network([network]), config, folder)


def logits(network: torch.nn.Module, ids_bs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(ids_bs, torch.arange(ids_bs.shape[1]).expand_as(ids_bs), None)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    # Several files, so that the index is read too.
    write_qwen3(tmp_path, tied=tied, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    network, notes = start_from(tmp_path, **PLAIN)
    ids_bs = torch.randint(250, (2, 50))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids_bs).logits
    assert torch.allclose(logits(network, ids_bs), expected, atol=2e-5)
    assert expected.abs().max() > 1
    assert len(notes) == tied and all("the embedding is also the head there" in note for note in notes)


def test_what_qwen3_lacks_keeps_its_initial_value_and_is_told(tmp_path: Path) -> None:
    write_qwen3(tmp_path, vocab_size=251)
    plain, _ = start_from(tmp_path, **PLAIN)
    network, notes = start_from(tmp_path)
    with_gains = dict(network.named_parameters())
    assert all(torch.equal(value, with_gains.pop(name)) for name, value in list(plain.named_parameters())[1:-1])
    gains = {name: value for name, value in with_gains.items() if "post_norm" in name}
    assert len(gains) == 4 and all(torch.equal(value, torch.full((64,), 0.1)) for value in gains.values())
    told = "\n".join(notes)
    assert "start with gain 0.1" in told and "not capped" in told and "251 of 251 rows" in told
    closed, notes = start_from(tmp_path, embedding_norm=True, **PLAIN)
    assert torch.equal(
        closed.embedding.norm.weight, torch.ones(64)
    ) and "no weights of model.embedding_norm" in "".join(notes)
    # Rows behind the vocabulary are padding: as fresh as in any new network.
    weights = network.embedding.word_embeddings.weight
    assert weights[:251].std() < 0.2 < weights[251:].std()


def test_larger_vocabulary_is_cut_and_other_functions_are_told(tmp_path: Path) -> None:
    write_qwen3(tmp_path, vocab_size=400, rms_norm_eps=1e-5)
    _, notes = start_from(tmp_path, rotary_base=10_000, **PLAIN)
    told = "\n".join(notes)
    assert "256 of 400 rows" in told and "rope_theta" in told and "rms_norm_eps was 1e-05" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 4}, "num_hidden_layers 2, but model.num_layers 4"),
        ({"vocab_size": 300}, "vocab_size 256, but model.vocab_size 300"),
        ({"kv_channels": 32}, "head_dim 16, but model.kv_channels 32"),
        ({"qk_layernorm": False}, "qk_layernorm is off"),
    ],
)
def test_other_shapes_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        start_from(write_qwen3(tmp_path), **change)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a checkpoint"):
        start_from(tmp_path)
    for change, message in (
        ({"model_type": "llama"}, "model_type llama"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "scaled rotary"),
    ):
        with pytest.raises(UserError, match=message):
            start_from(write_qwen3(tmp_path / "changed", **change), **PLAIN)
    folder = write_qwen3(tmp_path / "cut")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-1000], whole[:4], b"", b"\xff" * 100):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
            start_from(folder, **PLAIN)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match="pickles are not read"):
        start_from(folder, **PLAIN)
    outside = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(UserError, match=r"weight_map\.lm_head\.weight: value error, does not lie inside the folder"):
        start_from(folder, **PLAIN)


def test_our_own_that_cannot_be_used(tmp_path: Path) -> None:
    step = make_step(tmp_path, 10)
    with pytest.raises(UserError, match=rf"is a run; name one of its steps, {step}"):
        start_from(tmp_path)
    (step / "common.pt").write_bytes(b"damage before anything is unpickled")
    with pytest.raises(UserError, match=r"init_from: .*common\.pt: damaged"):
        start_from(step)
