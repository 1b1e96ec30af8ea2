"""`kaiyuan mix` with runs that train, from corpora to an order recipe that the builder takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_tools.curriculum.build import build_recipe
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.command import mix, plan
from tests.helpers.training.small_run import write_corpus

SHAPE = {"preset": "kaiyuan-tiny", "num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 64, "kv_channels": 8}


@pytest.fixture(scope="module")
def mix_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    for seed, name in enumerate(("code", "prose")):
        write_corpus(folder / "corpora" / name, documents=200, seed=seed)
        write_corpus(folder / "held_out" / name, documents=12, seed=10 + seed)
    network = {
        "run_dir": "unused",
        "platform": "cpu",
        "model": {**SHAPE, "vocab_size": 256},
        "data": {"phases": [{"path": "unused", "peak_lr": 1e-2}]},
        "train": {"seq_length": 64, "micro_batch_size": 4, "global_batch_size": 8},
    }
    (folder / "network.yaml").write_text(yaml.safe_dump(network))
    recipe = {
        "recipe": str(folder / "network.yaml"),
        "corpora": {name: str(folder / "corpora" / name) for name in ("code", "prose")},
        "held_out": {name: str(folder / "held_out" / name) for name in ("code", "prose")},
        "objective": {"code": 1},
        "runs": 4,
        "tokens": 3000,
        "target_tokens": 9000,
        "confirm": 1,
    }
    path = folder / "mix.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_from_corpora_to_an_order_recipe(mix_yaml: Path, tmp_path: Path) -> None:
    """More runs train only what is new; the recipe that it writes can be built."""
    said = mix(mix_yaml, [], tmp_path / "study", slots=2)
    assert "mix: 4 runs" in said and "own shares less best mixture" in said
    told = json.loads((tmp_path / "study" / "mixture.json").read_text())
    assert len(told["runs"]) == 4 and len(told["confirmed"]) == 1
    assert sum(told["best"]["shares"].values()) == pytest.approx(1)
    # Losses are the queue's, of the domains as they are named.
    rows = [json.loads(line) for line in (tmp_path / "study" / "queue" / "results.jsonl").read_text().splitlines()]
    assert {"bits_per_byte/code", "bits_per_byte/prose"} <= set(rows[0])

    places = sorted((tmp_path / "study" / "queue" / "runs").glob("*/result.json"))
    before = {place: place.stat().st_mtime_ns for place in places}
    mix(mix_yaml, ["runs=5"], tmp_path / "study", slots=2)
    assert all(place.stat().st_mtime_ns == stamp for place, stamp in before.items())
    again = json.loads((tmp_path / "study" / "mixture.json").read_text())
    assert again["runs"][:4] == told["runs"] and len(again["runs"]) == 5

    build_recipe(tmp_path / "study" / "order.yaml", [], tmp_path / "phases", None, threads=1)
    manifest = json.loads((tmp_path / "phases" / "mixture" / "manifest.json").read_text())
    assert manifest["tokens"] == pytest.approx(9000, abs=200)


def test_a_study_of_other_settings_is_not_mixed_in(mix_yaml: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a study of kaiyuan mix"):
        mix(mix_yaml, [], tmp_path / "study")
    assert (tmp_path / "study" / "notes.txt").read_text() == "mine"


def test_the_plan_trains_nothing(mix_yaml: Path) -> None:
    said = plan(mix_yaml, [])
    assert "4 runs of 3,000 tokens, 12,000 in all, for 9,000" in said
    largest = [float(line.split()[-4]) for line in said.splitlines()[1:]]
    assert np.all(np.array(largest) <= 4)


def test_a_corpus_that_is_missing_is_named(mix_yaml: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.idx: not found; mix.yaml names it"):
        mix(mix_yaml, ["corpora.code=nowhere"], tmp_path / "study")
    assert not (tmp_path / "study").exists()
