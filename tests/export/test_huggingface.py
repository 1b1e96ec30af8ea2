from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export import export_model, largest_logit_difference, load_network
from tests.helpers.files.word_tokenizer import write_tokenizer
from tests.helpers.references.network import SHAPE, numbered, random_weights, reference_logits


def model_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**SHAPE, **changes})


def token_ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 97), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_size": 96},
        {"num_query_groups": 4, "logits_soft_cap": None},
        {"num_query_groups": 1, "logits_soft_cap": 5.0},
        {"hidden_size": 96, "sandwich_norm": False, "logits_soft_cap": None},
    ],
    ids=["hidden-64", "hidden-96", "no-cap", "one-group", "qwen3"],
)
def test_exported_logits_equal_the_definition(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = model_config(**changes)
    weights = random_weights(model, seed=1)
    folder = export_model(weights, model, tmp_path / "model", None)

    reference = reference_logits(weights, model, token_ids())
    difference = largest_logit_difference(folder, lambda ids: reference_logits(weights, model, ids), token_ids())
    print(f"{changes}: largest logit {reference.abs().max():.3f}, largest difference {difference:.2e}")
    assert difference <= 1e-4 * reference.abs().max().item()
    if model.logits_soft_cap is not None:
        assert reference.abs().max() > 0.5 * model.logits_soft_cap, "the cap was not exercised"


def test_numbered_names_and_bookkeeping_entries_give_the_same_model(tmp_path: Path) -> None:
    model = model_config()
    weights = random_weights(model, seed=2)
    stacked = export_model(weights, model, tmp_path / "stacked", None)
    by_number = {**numbered(weights), "decoder.layers.0.self_attention.core_attention._extra_state": torch.zeros(0)}
    single = export_model(by_number, model, tmp_path / "single", None)
    assert (stacked / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()


def test_half_precision_weights_are_exported_as_fp32(tmp_path: Path) -> None:
    model = model_config()
    weights = {name: tensor.bfloat16() for name, tensor in random_weights(model, seed=4).items()}
    folder = export_model(weights, model, tmp_path / "model", None)
    full = {name: tensor.float() for name, tensor in weights.items()}
    assert largest_logit_difference(folder, lambda ids: reference_logits(full, model, ids), token_ids()) < 3e-3
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_tokenizer_and_end_of_text_travel_with_the_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = model_config()
    source = write_tokenizer(tmp_path / "tokenizer", vocabulary=40)
    (source / "training.log").write_text("not part of a tokenizer")
    folder = export_model(random_weights(model, seed=5), model, tmp_path / "model", source)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert network.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    assert network.config.pad_token_id is None
    assert not (folder / "training.log").exists()
    prompt = tokenizer("w1 w2 w3", return_tensors="pt")
    cached = network.generate(**prompt, max_new_tokens=8, do_sample=False)
    uncached = network.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, uncached)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    model = model_config()
    source = write_tokenizer(tmp_path / "tokenizer", vocabulary=500)
    with pytest.raises(UserError, match="500 ids, but the model has 384"):
        export_model(random_weights(model, seed=5), model, tmp_path / "model", source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_layernorm": False}, "qk_layernorm"),
        ({"embedding_norm": True}, "model.embedding_norm is on"),
        ({"sandwich_norm": False}, "logits_soft_cap"),
        ({"hidden_size": 66}, "multiple"),
    ],
)
def test_what_no_stock_class_represents_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_model({}, model_config(**changes), tmp_path / "model", None)


def test_wrong_weights_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    model = model_config()
    weights = random_weights(model, seed=6)
    cases = {
        "lm_head.weight": {name: tensor for name, tensor in weights.items() if name != "output_layer.weight"},
        "linear_fc9": {**weights, "decoder.layers.mlp.linear_fc9.weight": torch.zeros(3, 2)},
        "num_layers is 3": {**weights, "decoder.layers.mlp.linear_fc2.weight": torch.zeros(2, 64, 112)},
        "rows": {**weights, "decoder.layers.self_attention.linear_qkv.weight": torch.zeros(3, 8, 64)},
        "embed_tokens": {**weights, "embedding.word_embeddings.weight": torch.zeros(100, 64)},
    }
    for message, case in cases.items():
        with pytest.raises(UserError, match=message):
            export_model(case, model, tmp_path / "model", None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_export_is_not_replaced(tmp_path: Path) -> None:
    model = model_config()
    weights = random_weights(model, seed=7)
    export_model(weights, model, tmp_path / "model", None)
    export_model(weights, model, tmp_path / "model", None)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="exists and is not an exported model"):
        export_model(weights, model, tmp_path / "precious", None)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        export_model(random_weights(model_config(), seed=8), model_config(), tmp_path / "model", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="tokenizer"):
        export_model(random_weights(model_config(), seed=8), model_config(), tmp_path / "model", tmp_path / "empty")


def test_a_tokenizer_that_names_no_end_of_text_is_refused(tmp_path: Path) -> None:
    source = write_tokenizer(tmp_path / "tokenizer", vocabulary=40)
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        export_model(random_weights(model_config(), seed=9), model_config(), tmp_path / "model", source)
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_that_transformers_would_read_differently_is_refused(tmp_path: Path) -> None:
    """Without a tokenizer class transformers takes the one of the architecture, here Gemma's own."""
    source = write_tokenizer(tmp_path / "tokenizer", vocabulary=40)
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    with pytest.raises(UserError, match="tokenizer"):
        export_model(random_weights(model_config(), seed=9), model_config(), tmp_path / "model", source)
    assert not (tmp_path / "model").exists()


def test_an_export_is_replaced_by_itself_and_leaves_what_others_added(tmp_path: Path) -> None:
    model = model_config()
    folder = tmp_path / "model"
    export_model(random_weights(model, seed=7), model, folder, None, "first")
    with pytest.raises(UserError, match="holds an exported model already, made from something else"):
        export_model(random_weights(model, seed=8), model, folder, None, "second")
    export_model(random_weights(model, seed=8), model, folder, None, "second", force=True)
    (folder / "gguf").mkdir()
    (folder / "gguf" / "model.gguf").write_bytes(b"converted for hours")
    (folder / "README.md").write_text("a model card")
    for force in (False, True):
        with pytest.raises(UserError, match=r"README\.md: is not part of an exported model"):
            export_model(random_weights(model, seed=8), model, folder, None, "second", force=force)
    assert (folder / "gguf" / "model.gguf").read_bytes() == b"converted for hours"
    (folder / "model.safetensors").write_bytes(b"weights of my own")
    shutil.rmtree(folder / "gguf")
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: was changed after it was written"):
        export_model(random_weights(model, seed=8), model, folder, None, "second", force=True)
    assert (folder / "model.safetensors").read_bytes() == b"weights of my own"
    shutil.rmtree(folder)
    export_model(random_weights(model, seed=8), model, folder, None, "second")
    edited = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**edited, "note": "edited"}))
    with pytest.raises(UserError, match=r"config\.json: was changed after it was written"):
        export_model(random_weights(model, seed=8), model, folder, None, "second", force=True)


def test_weights_that_are_not_those_that_were_exported_are_not_used(tmp_path: Path) -> None:
    model = model_config()
    folder = export_model(random_weights(model, seed=8), model, tmp_path / "model", None)
    load_network(folder)
    (folder / "README.md").write_text("of the user's own")
    load_network(folder)
    path = folder / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"model\.safetensors: is not the file that was exported"):
        load_network(folder)
