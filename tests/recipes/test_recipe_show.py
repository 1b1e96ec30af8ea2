"""`kaiyuan config show`: every field, where it is from, and a text that means the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.config import dump_yaml, parse, read_yaml
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.recipes.classes import CLASSES, class_of
from megatron_kaiyuan.recipes.show import show

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*/*.yaml"))
QUICKSTART = ROOT / "launch" / "recipes" / "quickstart" / "train.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_shown_is_a_recipe_of_the_same_meaning(path: Path, tmp_path: Path):
    shown = tmp_path / "shown.yaml"
    shown.write_text(show(path))
    section = class_of(read_yaml(path), str(path))
    assert parse(section, read_yaml(shown), "shown") == parse(section, read_yaml(path), str(path))
    assert show(shown) == "\n".join(line.partition("  # ")[0] for line in show(path).splitlines())


def test_only_what_an_override_changes_is_marked():
    lines = show(QUICKSTART, ["data.phases[-1].peak_lr=5e-3", "data={}"]).splitlines()
    assert [line.strip() for line in lines if line.endswith("# command line")] == ["peak_lr: 0.005  # command line"]


def test_origins():
    lines = show(QUICKSTART, ["train.seed=7", "data.phases[1].peak_lr=1e-3", "model.num_layers=2"]).splitlines()
    stripped = [line.strip() for line in lines]
    assert "seed: 7  # command line" in stripped
    assert "num_layers: 2  # command line" in stripped
    assert "hidden_size: 128  # preset kaiyuan-tiny" in stripped
    assert "weight_decay: 0.1" in stripped or "weight_decay: 0.1  # default" in stripped
    assert stripped.count("peak_lr: 0.001  # command line") == 1 and "peak_lr: 0.006" in stripped
    assert "mindspeed: false  # default" in stripped and "platform: cpu" in stripped


@given(st.integers(1, 2**40), st.floats(1e-12, 1e12), st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_value_survives(tmp_path_factory: pytest.TempPathFactory, tokens: int, rate: float, project: str):
    """Numbers of any size, and text that YAML would read as something else: yes, 1e4, null, #, quotes."""
    folder = tmp_path_factory.mktemp("any")
    values = read_yaml(QUICKSTART)
    values["optimizer"]["warmup_tokens"] = tokens
    values["data"]["phases"][0]["peak_lr"] = rate
    values["monitor"] = {"wandb_project": project.replace("${", "")}
    recipe, shown = folder / "recipe.yaml", folder / "shown.yaml"
    recipe.write_text(dump_yaml(values), encoding="utf-8")
    shown.write_text(show(recipe), encoding="utf-8")
    train = CLASSES["train"]
    assert parse(train, read_yaml(shown), "shown") == parse(train, read_yaml(recipe), "recipe")


def test_a_file_that_is_no_recipe(tmp_path: Path):
    other = tmp_path / "other.yaml"
    other.write_text("colour: green\n")
    with pytest.raises(UserError, match=r"other\.yaml: is not a recipe; by its fields it would be a training recipe"):
        show(other)


def test_a_recipe_with_a_mistake_is_still_of_its_kind(tmp_path: Path):
    lacking = tmp_path / "lacking.yaml"
    lacking.write_text("run_dir: x\nmodel: {preset: kaiyuan-tiny}\n")
    with pytest.raises(UserError, match="data: required field is missing; train: required field is missing"):
        show(lacking)
