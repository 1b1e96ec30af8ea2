"""An exported folder is the same network and tokenizer in transformers 4 and 5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.export import export_model
from megatron_kaiyuan.export.huggingface import Form
from tests.helpers.files.word_tokenizer import write_tokenizer
from tests.helpers.references.network import SHAPE, random_weights, reference_logits
from tests.helpers.training.read_export import token_ids

# No field has the value that a version takes where it is missing; an epsilon of this size shows in the logits.
NOT_DEFAULT: dict[str, Any] = {**SHAPE, "rotary_base": 123_456, "layernorm_epsilon": 0.03}
CASES = {
    "gemma3": {**NOT_DEFAULT, "logits_soft_cap": 7.0},
    "gemma3-without-cap": {**NOT_DEFAULT, "logits_soft_cap": None, "num_query_groups": 1},
    "qwen3": {**NOT_DEFAULT, "sandwich_norm": False, "logits_soft_cap": None},
}
OWN = "kaiyuan"
TEXT = "w3 w5<|extra|> w2<|endoftext|> w30"


def tokenizer_of_transformers_5(folder: Path) -> Path:
    """As transformers 5 saves one: a class and a list that transformers 4 stops at, and code that is not there."""
    write_tokenizer(folder, 40)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["w7"]}
    config["auto_map"] = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    path.write_text(json.dumps(config))
    return folder


def exported(tmp_path: Path, case: str) -> tuple[Path, ModelConfig, dict[str, torch.Tensor]]:
    model = ModelConfig(**CASES.get(case, CASES["gemma3"]))
    weights = random_weights(model, seed=1)
    tokenizer = tokenizer_of_transformers_5(tmp_path / "tokenizer")
    form = Form("kaiyuan") if case == OWN else Form()
    return export_model(weights, model, tmp_path / "model", tokenizer, form=form), model, weights


@pytest.mark.parametrize("case", CASES)
def test_config_has_both_names_of_every_value(tmp_path: Path, case: str) -> None:
    folder, model, _ = exported(tmp_path, case)
    config = json.loads((folder / "config.json").read_text())
    gemma = model.sandwich_norm
    both = {"rope_theta": 123_456, "rope_type": "default"}
    wanted: dict[str, Any] = {
        "rope_theta": 123_456,
        "rope_scaling": None,
        "rope_parameters": {"full_attention": both, "sliding_attention": both} if gemma else both,
        "rms_norm_eps": 0.03,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "torch_dtype": "float32",
        "vocab_size": 384,
        "head_dim": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": model.num_query_groups,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "max_position_embeddings": 128,
        "layer_types": ["full_attention"] * 3,
        "attention_bias": False,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    if gemma:
        wanted |= {
            "model_type": "gemma3_text",
            "rope_local_base_freq": 123_456,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": model.logits_soft_cap,
            "attn_logit_softcapping": None,
            "sliding_window": 128,
            "sliding_window_pattern": 1,
            "use_bidirectional_attention": False,
            "hidden_activation": "silu",
        }
    else:
        wanted |= {"model_type": "qwen3", "use_sliding_window": False, "sliding_window": None, "hidden_act": "silu"}
    assert {name: config.get(name, "missing") for name in wanted} == wanted
    generation = json.loads((folder / "generation_config.json").read_text())
    # The tokenizer names no padding: the end of the text serves. config.json names none, see `formats.py`.
    assert generation["eos_token_id"] == generation["pad_token_id"] == 0
    assert generation.get("bos_token_id") is None


def test_a_tokenizer_saved_by_transformers_5_gets_names_that_both_read(tmp_path: Path) -> None:
    folder, _, _ = exported(tmp_path, "qwen3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["w7"]
    assert config["eos_token"] == "<|endoftext|>"
    assert not {"extra_special_tokens", "auto_map"} & config.keys()


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4 for PYTHONPATH: the variable TRANSFORMERS4, or installed here."""
    if given := os.environ.get("TRANSFORMERS4"):
        return Path(given)
    folder = tmp_path_factory.mktemp("transformers4")
    packages = ["transformers==4.57.*", "huggingface_hub<1.0", "tokenizers<0.23"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"transformers 4 cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, OWN])
def test_both_versions_read_the_same_network_and_tokenizer(tmp_path: Path, case: str, transformers_4: Path) -> None:
    folder, model, weights = exported(tmp_path, case)
    found = {}
    for name, path in (("4", str(transformers_4)), ("5", "")):
        command = [
            sys.executable,
            "-m",
            "tests.helpers.training.read_export",
            str(folder),
            str(tmp_path / f"{name}.pt"),
            TEXT,
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
        assert found[name].pop("version").startswith(f"{name}.")
    assert found["4"] == found["5"]

    reference = reference_logits(weights, model, token_ids(model.padded_vocab_size))
    for name in found:
        logits = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert (logits - reference).abs().max() <= 1e-4 * reference.abs().max(), name
