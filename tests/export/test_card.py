"""What a model card says, and what it does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kaiyuan.checkpoint.find import Found
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.card import model_card
from tests.helpers.references.network import SHAPE

RUN: dict[str, Any] = {
    "config": {
        "run_dir": "/secret/place/run",
        "train": {"seq_length": 64, "precision": "fp16"},
        "optimizer": {"adam_beta1": 0.9},
        "parallel": {"tensor_model_parallel_size": 2},
        "data": {"phases": [{"path": "/secret/place/phases/first", "peak_lr": 0.005}]},
        "monitor": {"prometheus_file": "/secret/place/metrics"},
    },
    "phases": [{"name": "first", "tokens": 2299, "corpora": {"web": "xxh3:0", "math": "xxh3:1"}}],
    "versions": {"torch": "2.13.0"},
    "git": {"commit": "0358ea0"},
    "world_size": 4,
}


def evaluated(run_dir: Path, name: str, accuracy: float) -> dict[str, Any]:
    tasks = {"arc_easy": {"acc": accuracy, "alias": "arc_easy"}}
    return {"model": {"name": f"{run_dir}, {name}", "held_out": {"nats_per_token": 2.5}, "tasks": tasks}}


def test_a_card_says_what_is_recorded_and_no_place_of_this_machine(tmp_path: Path) -> None:
    results = {**evaluated(tmp_path, "step 400", 0.5), "others": [evaluated(tmp_path, "step 40", 0.25)]}
    (tmp_path / "evaluation.json").write_text(json.dumps(results))
    found = Found(tmp_path / "checkpoints" / "step_40", tmp_path, "step 40")
    card = model_card(found, ModelConfig(**SHAPE), RUN, {"step": 40, "tokens": 10_240}, ("kaiyuan", "bfloat16"))
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "text-generation"
    for line in (
        "| trained on | 10,240 tokens |",
        "| weights of | step 40 |",
        "| first | 2,299 | web, math |",
        "| held-out loss | nats a token | 2.5000 |",
        "| arc_easy | acc | 0.2500 |",
        "| torch | 2.13.0 |",
        "| ranks | 4 |",
        "precision: fp16",
        "peak_lr: 0.005",
        'dtype="bfloat16", trust_remote_code=True',
    ):
        assert line in text, line
    # Scores of other steps are not this model's.
    assert "0.5000" not in text and "/secret" not in card and str(tmp_path) not in card


def test_an_average_says_how_it_was_made_and_needs_no_remote_code(tmp_path: Path) -> None:
    manifest = {"averaged_steps": [10, 20], "average": {"kind": "weighted", "weights": {"10": 0.25, "20": 0.75}}}
    found = Found(tmp_path / "averaged", None, "weighted mean of steps 10, 20")
    card = model_card(found, ModelConfig(**SHAPE), {"config": {}}, manifest, ("gemma3", "float32"))
    assert "| weights of | weighted mean of steps 10, 20: 0.25 of step 10, 0.75 of step 20 |" in card
    assert "trust_remote_code" not in card and "## Scores" not in card and "## Data" not in card


def test_damaged_results_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"evaluation\.json: a field is missing or wrong"):
        found = Found(tmp_path / "step_40", tmp_path, "step 40")
        model_card(found, ModelConfig(**SHAPE), RUN, {"step": 40}, ("kaiyuan", "float32"))
