"""What was meant: other tools' names, fields of other sections, exchanged recipes, dashes and underscores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from data_tools.curriculum.recipe import OrderRecipe, load_order
from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.config.hints import _ELSEWHERE, _paths
from megatron_kaiyuan.config.kinds import KINDS
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.recipe import MixRecipe, load_mix
from megatron_kaiyuan.research.probes.request import ProbeConfig, read_request

TRAIN = {
    "run_dir": "runs/x",
    "model": {"preset": "kaiyuan-tiny"},
    "data": {"phases": [{"path": "phase", "peak_lr": 1e-3}]},
    "train": {"seq_length": 128, "micro_batch_size": 2, "global_batch_size": 8},
}
ORDER = {
    "corpora": {"a": "corpora/a"},
    "phases": [{"name": "p", "order": "shuffle", "datasets": [{"corpus": "a"}]}],
}
PROBES = {"recipe": "t.yaml", "windows": "windows.json", "held_out": {"a": "a"}}
MIX = {**ORDER, "recipe": "t.yaml", "held_out": {"a": "a"}, "runs": 3, "tokens": 1, "target_tokens": 2}
del MIX["phases"]
RECIPES = {"RunConfig": TRAIN, "OrderRecipe": ORDER, "ProbeConfig": PROBES, "MixRecipe": MIX}
READERS = {"RunConfig": load_run, "OrderRecipe": load_order, "ProbeConfig": read_request, "MixRecipe": load_mix}


def message(tmp_path: Path, reader: str, content: object, *overrides: str) -> str:
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        READERS[reader](path, overrides)  # type: ignore[operator]
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("given", RECIPES)
@pytest.mark.parametrize("reader", READERS)
def test_an_exchanged_recipe_is_named_with_its_command(tmp_path: Path, reader: str, given: str) -> None:
    if reader == given:
        return
    found = message(tmp_path, reader, RECIPES[given])
    kind = KINDS[given]
    assert found.startswith(f"is {kind.name}, not {KINDS[reader].name}; it goes to: kaiyuan")
    assert kind.command.format(path=tmp_path / "given.yaml") in found


@pytest.mark.parametrize("reader", READERS)
def test_products_are_no_recipes(tmp_path: Path, reader: str) -> None:
    windows = {"format": "kaiyuan-windows", "by": "documents", "datasets": {}, "windows": [], "seal": ""}
    assert "name it there as windows" in message(tmp_path, reader, windows)
    manifest = {"format": "kaiyuan-phase", "seal": ""}
    assert "a file that this project wrote (kaiyuan-phase)" in message(tmp_path, reader, manifest)


@pytest.mark.parametrize("reader", READERS)
def test_files_of_other_programs_are_named(tmp_path: Path, reader: str) -> None:
    vocabulary = {f"w{number}": number for number in range(5000)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    found = message(tmp_path, reader, tokenizer)
    assert found.startswith(f"is a tokenizer (tokenizer.json), not {KINDS[reader].name}; name a YAML file")
    assert "the configuration of a model" in message(tmp_path, reader, {"model_type": "qwen3", "vocab_size": 5})
    # Of any other file with many fields a message stays one that can be read.
    strange = {"a field of the table of another program " * 3 + str(number): number for number in range(500)}
    found = message(tmp_path, reader, strange)
    assert len(found) < 1300 and re.search(r"; and \d+ more$", found)


def test_the_kinds_are_the_classes() -> None:
    for section in (RunConfig, OrderRecipe, ProbeConfig, MixRecipe):
        required = {name for name, field in section.model_fields.items() if field.is_required()}
        assert KINDS[section.__name__].fields == required


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learning_rate=1e-3", "learning_rate: unknown field; here it is data.phases.0.peak_lr (for each phase)"),
        ("train.lr=1e-3", "train.lr: unknown field; here it is data.phases.0.peak_lr"),
        ("seq_length=8", "seq_length: unknown field; it belongs elsewhere: write train.seq_length"),
        ("peak_lr=8", "peak_lr: unknown field; it belongs elsewhere: write data.phases.0.peak_lr"),
        ("micro-batch-size=8", "it belongs elsewhere: write train.micro_batch_size"),
        ("train.micro-batch-size=8", "did you mean 'micro_batch_size'?"),
        ("preset=kaiyuan-2b", "write model.preset"),
        ("warmup_steps=10", "here it is optimizer.warmup_tokens (in tokens: steps x global_batch_size x seq_length)"),
        ("micro_batch=8", "did you mean train.micro_batch_size?"),
        ("model.preset=kaiyuan_2b", "got 'kaiyuan_2b'; did you mean 'kaiyuan-2b'?"),
        ("train.precision=BF16", "did you mean 'bf16'?"),
        ("model=kaiyuan-2b", "model: write its fields below it"),
        ("train.zzzzzzzz=1", "train.zzzzzzzz: unknown field; known: seq_length, micro_batch_size"),
    ],
)
def test_what_was_meant(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in message(tmp_path, "RunConfig", TRAIN, override)


def test_a_wrong_preset_is_the_only_complaint(tmp_path: Path) -> None:
    found = message(tmp_path, "RunConfig", TRAIN, "model.preset=kaiyuan_tiny")
    assert found.count(";") == 1 and "required" not in found


def test_an_order_recipe_too(tmp_path: Path) -> None:
    wrong = {**ORDER, "phases": [{"name": "p", "order": "shuffle", "datasets": [{"corpus": "a", "weight": 0.5}]}]}
    found = message(tmp_path, "OrderRecipe", wrong)
    assert "phases.0.datasets.0.weight: unknown field; here it is phases.0.datasets.0.share" in found


def test_every_hint_leads_to_a_field() -> None:
    for section in (RunConfig, OrderRecipe):
        paths = set(_paths(section))
        names = {path.rpartition(".")[2] for path in paths}
        for name, (path, _) in _ELSEWHERE[section.__name__].items():
            assert path in paths or path == "repeat", path
            assert name not in names - {"phases", "dataset", "path", "batch_size"}, f"{name} is a field of this project"


@pytest.mark.parametrize("value", ["1e4", "10_000", "10000", "10k", "10,000", "1.0e4"])
def test_an_override_reads_a_number_as_the_recipe_does(tmp_path: Path, value: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(TRAIN).replace("train:\n", f"train:\n  train_tokens: {value}\n"))
    assert load_run(path).train.train_tokens == 10_000
    path.write_text(yaml.safe_dump(TRAIN))
    assert load_run(path, [f"train.train_tokens={value}"]).train.train_tokens == 10_000
    assert load_run(path, [f"optimizer.warmup_tokens={value}"]).optimizer.warmup_tokens == 10_000


def test_lengths_take_no_units(tmp_path: Path) -> None:
    found = message(tmp_path, "RunConfig", TRAIN, "train.seq_length=1k")
    assert "train.seq_length: 1k may mean 1000, or the power of two beside it" in found


def test_the_recipe_comes_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a field to change, not a recipe; name the recipe first"):
        load_run(Path("data.phases.0.path=phases/one"))
