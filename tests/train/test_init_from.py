"""A new run from weights only: our own checkpoints, and a Hugging Face folder on four ranks."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.helpers.training.saved_state import load
from tests.helpers.training.small_run import VOCAB, metrics, train


def write_qwen3(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    network = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
            dtype="bfloat16",
        )
    )
    network.save_pretrained(folder)
    return network.state_dict()


def events(run_dir: Path, name: str) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("event") == name]


def test_qwen3_on_four_ranks(recipe: Path, tmp_path: Path) -> None:
    theirs = write_qwen3(tmp_path / "qwen3")
    run_dir = tmp_path / "run"
    layout = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]
    done = train(
        4, recipe, "--init-from", str(tmp_path / "qwen3"), f"run_dir={run_dir}", "train.train_tokens=0", *layout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, common = load(run_dir / "checkpoints" / "step_0")
    assert common["progress"]["tokens"] == 0
    for index in range(2):
        layer = f"model.layers.{index}."
        gate, up = (theirs[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up"))
        assert torch.equal(ours["decoder.layers.mlp.linear_fc1.weight"][index], torch.cat([gate, up]))
        down = theirs[f"{layer}mlp.down_proj.weight"]
        assert torch.equal(ours["decoder.layers.mlp.linear_fc2.weight"][index], down)
        query, key, value = (theirs[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv")
        # Two groups, each of two query heads, a key head and a value head of 16 rows.
        parts = [query[:32], key[:16], value[:16], query[32:], key[16:], value[16:]]
        assert torch.equal(ours["decoder.layers.self_attention.linear_qkv.weight"][index], torch.cat(parts))
    assert torch.equal(ours["embedding.word_embeddings.weight"], theirs["model.embed_tokens.weight"])
    assert torch.equal(ours["output_layer.weight"], theirs["lm_head.weight"])
    # The optimizer's main weights follow.
    assert torch.equal(ours["optimizer.state.param.output_layer.weight"], theirs["lm_head.weight"])
    (event,) = events(run_dir, "init_from")
    assert event["path"] == str(tmp_path / "qwen3") and "not capped" in str(event["notes"])
    assert "start with gain 0.1" in done.stderr


def test_our_checkpoint_in_another_precision_and_layout(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    source = finished_run / "checkpoints" / "step_20"
    settings = [f"run_dir={tmp_path}", "train.precision=bf16", "parallel.tensor_model_parallel_size=2"]
    done = train(2, recipe, *settings, "--init-from", str(source), "train.train_tokens=512")
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, _ = load(source)
    ours, common = load(tmp_path / "checkpoints" / "step_0")
    weights = [name for name in ours if not name.startswith("optimizer.")]
    assert len(weights) == len(ours) // 4
    for name in weights:
        assert torch.equal(ours[name], theirs[name].bfloat16())
        assert torch.equal(ours[f"optimizer.state.param.{name}"], theirs[name].bfloat16().float())
        assert not ours[f"optimizer.state.exp_avg.{name}"].any()
    assert common["progress"] == {**common["progress"], "step": 0, "tokens": 0}
    # It goes on from what was learned: a new network would be at ln 256 = 5.5.
    assert metrics(tmp_path)[1]["loss"] < 4.2

    again = train(2, recipe, *settings, "--init-from", str(tmp_path / "elsewhere"), "train.train_tokens=1024")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "elsewhere: not used: the run has a checkpoint of its own, step 1" in again.stderr
    assert metrics(tmp_path)[2]["loss"] < 4.2
