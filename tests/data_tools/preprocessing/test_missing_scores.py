"""A missing score from the input to the order of a phase: null in the sidecar, dropped or lowest in the curriculum."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.corpora.verify import verify
from data_tools.curriculum.build import build_recipe
from data_tools.preprocessing.preprocess import Settings, preprocess
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows

SCORES: list[Any] = [0.5, None, 0.25, math.nan, "absent", 0.75, 0.25, 1]


def write_input(path: Path, form: str) -> Path:
    rows = [{"text": f"document {number}", "score": score} for number, score in enumerate(SCORES)]
    if form == "jsonl":
        return write_rows(
            path / "in.jsonl",
            [{name: value for name, value in row.items() if value != "absent"} for row in rows],
        )
    scores = pa.array(
        [None if score == "absent" else float("nan") if score is None else float(score) for score in SCORES]
    )
    pq.write_table(pa.table({"text": [row["text"] for row in rows], "score": scores}), path / "in.parquet")
    return path / "in.parquet"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_missing_score_is_null_and_counted(tokenizer_path: Path, tmp_path: Path, form: str) -> None:
    source = write_input(tmp_path, form)
    totals = preprocess([source], tmp_path / "c", Settings(tokenizer_path, score_keys=("score",)), task_bytes=40)
    assert totals.sequences == len(SCORES) and totals.missing_scores == {"score": 3}
    assert "; score missing: 3" in str(totals)
    prefix = tmp_path / "c_text_document"
    assert pq.read_table(metadata_path(prefix))["score"].to_pylist() == [0.5, None, 0.25, None, None, 0.75, 0.25, 1.0]
    verify(prefix)


@pytest.mark.parametrize("missing", ["drop", "lowest", "refuse"])
def test_the_order_recipe_decides_what_becomes_of_it(tokenizer_path: Path, tmp_path: Path, missing: str) -> None:
    preprocess([write_input(tmp_path, "jsonl")], tmp_path / "c", Settings(tokenizer_path, score_keys=("score",)))
    recipe = {
        "corpora": {"c": str(tmp_path / "c_text_document")},
        "phases": [
            {
                "name": "p",
                "order": "curriculum",
                "datasets": [{"corpus": "c", "score": "score", "missing_scores": missing}],
            }
        ],
    }
    (tmp_path / "order.yaml").write_text(json.dumps(recipe))
    if missing == "refuse":
        with pytest.raises(UserError, match="missing; score it again, or write missing_scores: drop or lowest"):
            build_recipe(tmp_path / "order.yaml", [], tmp_path / "phases", None, 1)
        return
    build_recipe(tmp_path / "order.yaml", [], tmp_path / "phases", None, 1)
    phase = Phase(tmp_path / "phases" / "p")
    order = [phase.document(number)[1] for number in range(phase.documents)]
    scores = [
        -1.0 if not isinstance(SCORES[one], (int, float)) or SCORES[one] != SCORES[one] else SCORES[one]
        for one in order
    ]
    assert sorted(order) == ([0, 2, 5, 6, 7] if missing == "drop" else list(range(8)))
    assert np.all(np.diff(scores) >= 0)


def test_a_name_that_no_row_has_is_a_mistake(
    tokenizer_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_input(tmp_path, "jsonl")
    with pytest.raises(UserError, match="--score-keys edu: none of 8 documents has this score"):
        preprocess([source], tmp_path / "c", Settings(tokenizer_path, score_keys=("score", "edu")))
    assert not list(tmp_path.glob("c_text*.bin"))
    assert capsys.readouterr().err == (
        "warning: no row at the beginning of the input has the score 'edu'; is it the right name?\n"
    )


def test_a_column_that_a_whole_file_lacks_is_an_error_with_its_name(tokenizer_path: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path, "parquet")
    pq.write_table(pa.table({"text": ["other"]}), tmp_path / "other.parquet")
    settings = Settings(tokenizer_path, score_keys=("score",))
    with pytest.raises(UserError, match=r"other\.parquet: has no column 'score'; it has text"):
        preprocess([source, tmp_path / "other.parquet"], tmp_path / "c", settings)
    # One that says that it has none is sound.
    pq.write_table(pa.table({"text": ["other"], "score": pa.nulls(1)}), tmp_path / "other.parquet")
    totals = preprocess([source, tmp_path / "other.parquet"], tmp_path / "c", settings)
    assert totals.sequences == 9 and totals.missing_scores == {"score": 4}
