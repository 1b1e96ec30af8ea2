"""Scorers from the command line, and what holds for each kind."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from data_tools.scores import kinds
from data_tools.scores.parse import kind_names, parse_scorer, parse_scorers
from data_tools.scores.scorer import measures, text_memory, texts_of
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.real_texts import batch_of

KINDS = ["classifier", "column", "language", "linear", "loss", "perplexity", "rules"]


def module_of(kind: str) -> ModuleType:
    return importlib.import_module(f"{kinds.__name__}.{kind}")


def test_kinds_are_the_modules_of_a_folder() -> None:
    assert kind_names() == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_frozen_dataclass_that_says_when_a_score_is_missing(kind: str) -> None:
    cls: Any = module_of(kind).SCORER
    assert dataclasses.is_dataclass(cls)
    params, version = (getattr(cls, name) for name in ("__dataclass_params__", "version"))
    assert params.frozen
    assert {field.name for field in dataclasses.fields(cls)} >= {"name"}
    assert isinstance(version, int)
    assert re.search(r"[Mm]issing", cls.__doc__)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scorer_pickles_and_names_its_columns_without_a_model(kind: str) -> None:
    first = dataclasses.fields(module_of(kind).SCORER)[0]
    value = "" if first.default is not dataclasses.MISSING else "=x"
    scorer = parse_scorer(f"{kind}{value},name=own")
    assert pickle.loads(pickle.dumps(scorer)) == scorer
    assert scorer.columns and all(column.startswith("own") for column in scorer.columns)
    assert set(scorer.columns.values()) <= {pa.float64(), pa.string()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quality", "'quality' is not a scorer; choose one of classifier, column"),
        ("", "'' is not a scorer"),
        ("column", "column is missing; write column=COLUMN"),
        ("column=", "column= is not a name"),
        ("column=q,scale=two", "scale=two is not a number"),
        ("column=q,scal=2", "unknown setting 'scal'; choose from column, name, scale, shift"),
        ("column=q,scale", "'scale' is not SETTING=VALUE"),
        ("column=q,name=7up", "score name '7up': use letters, digits and _"),
        ("column=a b", "score name 'a b'"),
        ("perplexity=m.arpa,pieces=", "pieces= is not a path"),
        ("classifier=m,batch=1.5", "batch=1.5 is not a whole number"),
        ("classifier=m,batch=0", "batch=0 is too small"),
        ("loss=m,tokens=0", "tokens=0 is too small"),
        ("rules,families=c4+c5", "unknown family 'c5'; join some of c4+gopher+repetition+fineweb by +"),
        ("language,characters=-1", "characters=-1 is negative"),
    ],
)
def test_a_wrong_text_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_scorer(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_two_scorers_may_not_make_one_column() -> None:
    assert [scorer.name for scorer in parse_scorers(["column=a", "column=a,name=b"])] == ["a", "b"]
    with pytest.raises(UserError, match=r"both make the column 'a'; add ,name="):
        parse_scorers(["column=a", "column=b,name=a"])


def test_identity_is_of_contents_and_settings(tmp_path: Path) -> None:
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(content)
    one, same, other = (parse_scorer(f"linear={tmp_path / name}").identity() for name in "abc")
    assert json.loads(json.dumps(one)) == one == same != other
    assert one != parse_scorer(f"linear={tmp_path / 'a'},label=x").identity()
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "weights").write_text("1")
    whole = parse_scorer(f"classifier={tmp_path / 'folder'}").identity()
    assert list(whole["files"]["folder"]) == ["deep/weights"]
    with pytest.raises(UserError, match="not found"):
        parse_scorer(f"linear={tmp_path / 'absent'}").identity()


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("py3langid.langid", "kenlm", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"needs the package 'py3langid.langid'.*pip install .*'py3langid>="):
        parse_scorer("language").identity()
    with pytest.raises(UserError, match=r"needs the package 'kenlm'.*pip install .*'ufal-kenlm>="):
        parse_scorer(f"perplexity={tmp_path / 'absent'}").score(batch_of([]))
    with pytest.raises(UserError, match=r"needs the package 'transformers'.*pip install .*'transformers>="):
        parse_scorer(f"classifier={tmp_path / 'absent'}").score(batch_of([]))


def test_documents_are_read_from_their_column() -> None:
    assert texts_of(pa.RecordBatch.from_pydict({"text": ["a", None]})).type == pa.large_string()
    with pytest.raises(UserError, match="column 'text' is missing"):
        texts_of(pa.RecordBatch.from_pydict({"content": ["a"]}))
    with pytest.raises(UserError, match="column 'text' is int64, not text"):
        texts_of(pa.RecordBatch.from_pydict({"text": [1]}))


def test_memory_of_texts_is_that_of_their_slice() -> None:
    texts = pa.array(["zero", "eins", None, "", "ä"], type=pa.large_string())
    for start in range(6):
        for size in range(6 - start):
            part = texts.slice(start, size)
            offsets, data = text_memory(part)
            spans = itertools.pairwise(offsets)
            assert [bytes(data[a:b]).decode() for a, b in spans] == [text or "" for text in part.to_pylist()]


def test_nan_and_none_are_missing_scores() -> None:
    assert measures([1, None, float("nan")]).to_pylist() == [1.0, None, None]


def test_a_column_is_a_score() -> None:
    batch = batch_of(["x"] * 5, whole=[1, 2, None, 4, 5], real=[0.5, float("nan"), float("inf"), None, 1e300])
    assert parse_scorer("column=whole,scale=2,shift=-1").score(batch)["whole"].to_pylist() == [1, 3, None, 7, 9]
    assert parse_scorer("column=real,scale=10,name=x").score(batch)["x"].to_pylist() == [5, None, None, None, 1e301]
    assert parse_scorer("column=real,scale=1e10").score(batch)["real"].to_pylist() == [5e9, None, None, None, None]
    flags = pa.RecordBatch.from_pydict({"good": [True, False, None]})
    assert parse_scorer("column=good").score(flags)["good"].to_pylist() == [1, 0, None]
    with pytest.raises(UserError, match="column 'absent' is not in the input, which has text, whole, real"):
        parse_scorer("column=absent").score(batch)
    with pytest.raises(UserError, match="column 'text' is text, not numbers"):
        parse_scorer("column=text").score(batch)
