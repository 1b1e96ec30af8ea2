"""Several averages at once: each loss is that of the average by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_run import TOKENS_PER_STEP, fit_here, write_corpus, write_recipe


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, all saved, with a kept EMA; held-out corpora `code` and `prose` beside the run."""
    folder = tmp_path_factory.mktemp("averages")
    recipe = write_recipe(folder, documents=120)
    tokens = f"train.train_tokens={6 * TOKENS_PER_STEP}"
    fit_here(recipe, tokens, "checkpoint.save_every_steps=1", "checkpoint.keep_last=9", "ema.decay=0.7")
    for seed, domain in enumerate(("code", "prose"), 10):
        write_corpus(folder / "held_out" / domain, documents=5, seed=seed)
    return folder / "run"


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


def corpora(run_dir: Path) -> list[Path]:
    return [run_dir.parent / "held_out" / domain for domain in ("code", "prose")]


def test_each_loss_is_that_of_the_average_by_itself(run_dir: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    from megatron_kaiyuan.checkpoint.weighting import Weighting, several
    from megatron_kaiyuan.evaluate.averages import Wanted, compare_averages
    from megatron_kaiyuan.evaluate.measures import Measures
    from megatron_kaiyuan.evaluate.run import evaluate

    kinds = several(["equal", "ema", "one_minus_sqrt"], "steps", 0.7, 1.0)
    output = tmp_path / "averages.html"
    line = compare_averages(run_dir, Wanted(kinds, (1, 3), corpora(run_dir)), output)
    assert line.startswith("averages: lowest held-out loss ") and line.endswith(f"; {output}")
    result = json.loads(output.with_suffix(".json").read_text())
    found = {(row["kind"], row["last"]): row for row in result["averages"]}
    assert found.keys() == {(kind, last) for kind in ("equal", "ema", "one_minus_sqrt") for last in (1, 3)}
    assert len({row["held_out"]["nats_per_token"] for row in found.values()}) == 4
    # Of one checkpoint every kind is that checkpoint.
    assert all(found[kind, 1]["held_out"] == result["newest"] for kind in ("equal", "ema", "one_minus_sqrt"))

    def alone(path: Path, **options: Any) -> dict[str, Any]:
        measured, _ = evaluate(path, Measures(corpora(run_dir)), tmp_path / "one.json", force=True, **options)
        held_out: dict[str, Any] = measured["model"]["held_out"]
        return held_out

    average_checkpoints(run_dir, Selection(3), tmp_path / "mean", weighting=Weighting("ema", "steps", 0.7))
    assert alone(tmp_path / "mean") == found["ema", 3]["held_out"]
    assert found["ema", 3]["weights"] == pytest.approx({"4": 0.49 / 2.19, "5": 0.7 / 2.19, "6": 1 / 2.19})
    # The loss falls quickly here: what counts new weights more is better, and the EMA kept in training saw all of them.
    assert found["ema", 3]["held_out"]["nats_per_token"] < found["equal", 3]["held_out"]["nats_per_token"]
    assert alone(run_dir, weights="ema") == result["kept_ema"] != alone(run_dir) == result["newest"]

    page = output.read_text()
    assert page.count("<figure") == 3 and "EMA kept at step 6" in page
    best = min(row["held_out"]["nats_per_token"] for row in found.values())
    assert f"<td>{best:.4f}</td>" in page and re.search(r"4: 0\.224, 5: 0\.320, 6: 0\.457", page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["averages.html", "averages.json", "mean", "one.json"]


def test_what_is_in_the_way_stays(run_dir: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.weighting import several
    from megatron_kaiyuan.evaluate.averages import Wanted, compare_averages

    output = tmp_path / "averages.html"
    kinds = several(["equal"], "checkpoints", 0.7, 1.0)
    for name in ("averages.json", "averages.html"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name}: exists and is not a "):
            compare_averages(run_dir, Wanted(kinds, (1,), corpora(run_dir)), output)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    compare_averages(run_dir, Wanted(kinds, (1,), corpora(run_dir)), output)
    other = Wanted(kinds, (2,), corpora(run_dir))
    with pytest.raises(UserError, match=r"averages\.json: holds a result of kaiyuan averages already, made from"):
        compare_averages(run_dir, other, output)
    compare_averages(run_dir, other, output, force=True)


def test_mistakes_are_named(run_dir: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.weighting import several
    from megatron_kaiyuan.evaluate.averages import Wanted, compare_averages

    with pytest.raises(UserError, match="--kinds: 'mean' is not one of equal, ema, one_minus_sqrt"):
        several(["mean"], "steps", 0.7, 1.0)
    kinds = several(["equal"], "checkpoints", 0.7, 1.0)
    for wanted, output, message in (
        (Wanted(kinds, (7,), corpora(run_dir)), "page.html", "7 trained checkpoints asked for, 6 scheduled ones found"),
        (Wanted(kinds, (1,), [tmp_path / "gone"]), "page.html", "gone"),
        (Wanted(kinds, (1,), corpora(run_dir), seq_length=10**6), "page.html", "seq_length 1000000: .* tokens at most"),
        (Wanted(kinds, (1,), corpora(run_dir)), "page.json", "page.json: is the name of the JSON file"),
    ):
        with pytest.raises(UserError, match=message):
            compare_averages(run_dir, wanted, tmp_path / output)
    assert list(tmp_path.iterdir()) == []
