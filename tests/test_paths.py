"""`~` where paths enter: every recipe's field and every option of both commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data_tools.curriculum.recipe import OrderRecipe
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.section import Section
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.paths import path_word, user_path, user_paths
from megatron_kaiyuan.research.mixture.recipe import MixRecipe
from megatron_kaiyuan.research.probes.request import ProbeConfig


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_like_the_shell(home: Path) -> None:
    for text in ("~", "~/runs/x", "~root/x", "runs/~/x", "/x/~", "a~", "x~/y"):
        assert str(user_path(text)) == os.path.expanduser(text)


def test_no_such_user_is_named_unless_a_file_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no user 'nobody_of_this_name'"):
        user_path("~nobody_of_this_name/x")
    Path("~nobody_of_this_name").touch()
    assert user_path("~nobody_of_this_name") == Path("~nobody_of_this_name")


def test_lists_and_mappings(home: Path) -> None:
    assert user_paths({"a": [Path("~/x"), "~/text"], "b": (Path("y"), 1)}) == {
        "a": [home / "x", "~/text"],
        "b": (Path("y"), 1),
    }


RECIPES: list[tuple[type[Section], dict[str, Any], str]] = [
    (
        RunConfig,
        {
            "run_dir": "~/run",
            "init_from": "~/init",
            "model": {"preset": "kaiyuan-tiny"},
            "data": {"phases": [{"path": "~/phase", "peak_lr": 1e-3}]},
            "train": {"seq_length": 8, "micro_batch_size": 1, "global_batch_size": 1},
        },
        "run_dir init_from data.phases.0.path",
    ),
    (
        OrderRecipe,
        {
            "root": "~/root",
            "corpora": {"a": "~/a", "b": "b"},
            "phases": [{"name": "p", "order": "shuffle", "datasets": [{"corpus": "a"}]}],
        },
        "root corpora.a",
    ),
    (
        ProbeConfig,
        {
            "recipe": "~/r.yaml",
            "windows": ["~/windows.json", {"name": "w", "phases": ["~/p"]}],
            "held_out": {"a": "~/a"},
            "main_run": {"recipe": "~/m.yaml"},
        },
        "recipe windows.0 windows.1.phases.0 held_out.a main_run.recipe",
    ),
    (
        MixRecipe,
        {
            "recipe": "~/r.yaml",
            "corpora": {"a": "~/a", "b": "~/b"},
            "held_out": {"a": "~/a"},
            "runs": 3,
            "tokens": "1k",
            "target_tokens": "1M",
        },
        "recipe corpora.a corpora.b held_out.a",
    ),
]


@pytest.mark.parametrize(("section", "values", "places"), RECIPES)
def test_every_path_of_every_recipe(home: Path, section: type[Section], values: dict[str, Any], places: str) -> None:
    recipe = section.model_validate(values).model_dump()
    for place in places.split():
        found: Any = recipe
        for part in place.split("."):
            found = found[int(part) if isinstance(found, list) else part]
        assert found.is_relative_to(home), place
    assert "~" not in str(recipe)


def test_words_with_a_name_before_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for word, expected in {
        "~/x": f"{home}/x",
        "web=~/x*": f"web={home}/x*",
        "~/a=~/b": f"{home}/a=~/b",
        "web=x/~": "web=x/~",
        "s3://bucket/~x": "s3://bucket/~x",
        "text": "text",
    }.items():
        assert path_word(word) == expected
    Path("a=~").touch()
    assert path_word("a=~") == "a=~", "a file of that name"
