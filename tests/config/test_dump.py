"""What is written as YAML is read back as the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_kaiyuan.config import dump_yaml, one_line, read_yaml

TEXT = st.text(st.characters(codec="utf-8")).map(lambda text: text.replace("${", ""))
# Characters of numbers, of which YAML 1.1 and 1.2 make different ones.
NUMBERLIKE = st.text("0123456789eE+-._:oxabinfNaN", max_size=8)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT, NUMBERLIKE),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXT, NUMBERLIKE), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dump") / "recipe.yaml"


@given(VALUES)
@example("0E0")
@example("1e4")
@example("0o17")
@example("1:30")
@example("yes")
def test_any_value_is_read_back(file: Path, value: Any) -> None:
    file.write_text(dump_yaml({"value": value}, allow_unicode=False), encoding="utf-8")
    assert read_yaml(file) == {"value": value}
    line = one_line(value)
    assert line.splitlines() == [line] or not line
    file.write_text(f"value: {line}\n", encoding="utf-8")
    assert read_yaml(file) == {"value": value}
