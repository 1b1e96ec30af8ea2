"""From a recipe and corpora to phase folders: every figure of the artefact recomputed, and the command's errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.phase import STRIDE, Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum
from tests.data.small_corpora import numbered_corpus, write_corpus

SIZES = {"code": 2600, "wiki": 700, "maths": 1}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    """Three corpora of short documents; code's scores have many ties, maths is one document."""
    folder = tmp_path_factory.mktemp("corpora")
    generator = np.random.default_rng(3)
    prefixes = {}
    for first, (name, size) in enumerate(SIZES.items()):
        lengths = generator.integers(1, 9, size).tolist()
        scores = {"score": generator.integers(0, 20, size).astype(float).tolist()}
        prefixes[name] = numbered_corpus(folder / f"{name}_text_document", lengths, 100 * first, scores=scores)
    return prefixes


def phase_recipe(*datasets: dict, order: str = "curriculum", **more) -> PhaseRecipe:
    return PhaseRecipe.model_validate({"name": "phase", "order": order, "datasets": list(datasets), **more})


CURRICULUM = phase_recipe(
    {"corpus": "code", "score": "score", "keep": "top 0.4"}, {"corpus": "wiki", "repeat": 2.5}, {"corpus": "maths"}
)


def read_order(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    order = np.fromfile(folder / "order.bin", "<u8").astype(np.int64)
    return order >> 48, order & (2**48 - 1)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_artefact_is_what_its_manifest_says(corpora, tmp_path):
    folder = tmp_path / "phases/phase"
    built = build_phase(CURRICULUM, corpora, folder, threads=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    datasets, sequences = read_order(folder)
    opened = [IndexedCorpus(corpora[name]) for name in SIZES]
    lengths = np.array([opened[d].lengths[s] for d, s in zip(datasets, sequences, strict=True)], np.int64)

    assert manifest["documents"] == len(datasets) == built.documents
    assert manifest["tokens"] == lengths.sum() == built.tokens
    cumulative = np.concatenate([[0], np.cumsum(lengths)])
    assert np.fromfile(folder / "tokens.bin", "<u8").tolist() == [*cumulative[:-1:STRIDE], cumulative[-1]]
    for number, entry in enumerate(manifest["corpora"]):
        assert (folder / entry["path"]).resolve() == opened[number].prefix
        assert entry["fingerprint"] == opened[number].fingerprint()
        assert entry["sequences"] == len(opened[number])
        assert entry["documents"] == np.sum(datasets == number)
        assert entry["tokens"] == lengths[datasets == number].sum()
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (folder / name).stat().st_size, "checksum": checksum(folder / name)}
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}


def test_selection_repetition_and_rising_quality(corpora, tmp_path):
    build_phase(CURRICULUM, corpora, tmp_path / "phase", threads=1)
    datasets, sequences = read_order(tmp_path / "phase")
    scores = pq.read_table(f"{corpora['code']}.meta.parquet")["score"].to_numpy()
    code = sequences[datasets == 0]
    assert len(code) == len(set(code)) == 1040
    assert np.all(np.diff(scores[code]) >= 0)
    assert scores[code].min() >= np.sort(scores)[-1040]
    copies = np.bincount(sequences[datasets == 1], minlength=SIZES["wiki"])
    assert set(copies) == {2, 3}
    assert abs(copies.mean() - 2.5) < 0.1
    assert sequences[datasets == 2].tolist() == [0]


def test_the_profile_adds_up(corpora, tmp_path):
    build_phase(CURRICULUM, corpora, tmp_path / "phase", threads=1)
    profile = json.loads((tmp_path / "phase/profile.json").read_text())
    manifest = json.loads((tmp_path / "phase/manifest.json").read_text())
    assert profile["tokens"][-1] == manifest["tokens"]
    assert len(profile["tokens"]) == 50
    assert {name: sum(parts["tokens"]) for name, parts in profile["datasets"].items()} == {
        entry["name"]: entry["tokens"] for entry in manifest["corpora"]
    }
    quality = profile["datasets"]["code"]["mean_score"]
    assert np.all(np.diff(quality) >= -1e-9)
    assert set(profile["datasets"]["wiki"]["mean_score"]) == {None}
    widths = np.diff([0, *profile["tokens"]])
    shares = np.sum([parts["tokens"] for parts in profile["datasets"].values()], axis=0)
    assert np.all(np.abs(shares - widths) <= 8)  # the longest document


def test_same_recipe_same_bytes_and_seeds_and_phases_differ(corpora, tmp_path):
    folder = tmp_path / "phase"
    build_phase(CURRICULUM, corpora, folder, threads=1)
    once = files(folder)
    build_phase(CURRICULUM, corpora, folder, threads=3)
    assert files(folder) == once
    for change in ({"seed": 9}, {"name": "other"}):
        build_phase(CURRICULUM.model_copy(update=change), corpora, folder, threads=1)
        assert files(folder)["order.bin"] != once["order.bin"]
    assert not list(tmp_path.glob("*.tmp"))


def test_top_fractions_of_phases_are_nested_and_random_ones_independent(corpora, tmp_path):
    chosen = {}
    for name, keep in (("early", "0.4"), ("late", "0.1")):
        phase = phase_recipe(
            {"corpus": "maths"},
            {"corpus": "code", "score": "score", "keep": f"top {keep}"},
            {"corpus": "wiki", "keep": f"random {keep}"},
            name=name,
        )
        build_phase(phase, corpora, tmp_path / name, threads=1)
        datasets, sequences = read_order(tmp_path / name)
        chosen[name] = [set(sequences[datasets == dataset].tolist()) for dataset in (1, 2)]
    assert chosen["late"][0] < chosen["early"][0]
    assert 10 < len(chosen["late"][1] & chosen["early"][1]) < 50  # 28 of 70 expected


def test_a_stock_megatron_corpus_without_metadata(corpora, tmp_path):
    prefix = write_corpus(tmp_path / "stock", [[1, 2], [3]])
    for suffix in (".meta.parquet", ".manifest.json"):
        Path(f"{prefix}{suffix}").unlink()
    build_phase(phase_recipe({"corpus": "stock"}, order="shuffle"), {"stock": prefix}, tmp_path / "phase", 1)
    assert Phase(tmp_path / "phase").manifest["corpora"][0]["max_token_id"] is None
    with pytest.raises(UserError, match=r"stock\.meta\.parquet: not found, so the corpus has no score 'score'"):
        scored = phase_recipe({"corpus": "stock", "score": "score"})
        build_phase(scored, {"stock": prefix}, tmp_path / "phase", 1)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"corpus": "code", "score": "scroe"}, r"unknown score column 'scroe'; did you mean 'score'\?"),
        ({"corpus": "code", "score": "domain"}, "column 'domain' holds no numbers"),
        ({"corpus": "maths", "keep": "random 0.4"}, "keep 'random 0.4' of 1 documents leaves 0"),
        ({"corpus": "holed", "score": "score"}, "dataset holed: 1 of 2 scores are NaN"),
        ({"corpus": "holed", "score": "score", "keep": "top 0.5"}, "dataset holed: 1 of 2 scores are NaN"),
        ({"corpus": "absent"}, r"absent\.idx: corpus index not found"),
    ],
)
def test_refuses(corpora, tmp_path, dataset, message):
    holed = write_corpus(tmp_path / "holed", [[1], [2]], {"score": [1.0, float("nan")]})
    prefixes = {**corpora, "holed": holed, "absent": tmp_path / "absent"}
    with pytest.raises(UserError, match=message):
        build_phase(phase_recipe(dataset), prefixes, tmp_path / "phase", 1)
    assert not (tmp_path / "phase").exists()


def test_an_optional_dataset_may_be_absent(corpora, tmp_path):
    prefixes = {**corpora, "absent": tmp_path / "absent"}
    absent = {"corpus": "absent", "score": "score", "optional": True}
    built = build_phase(phase_recipe(absent, {"corpus": "maths"}), prefixes, tmp_path / "phase", 1)
    assert "absent left out: optional" in str(built)
    assert [entry["name"] for entry in Phase(tmp_path / "phase").manifest["corpora"]] == ["maths"]
    with pytest.raises(UserError, match="all its corpora are optional and none exists"):
        build_phase(phase_recipe(absent), prefixes, tmp_path / "other", 1)


def test_does_not_replace_a_folder_of_other_things(corpora, tmp_path):
    (tmp_path / "phase").mkdir()
    (tmp_path / "phase/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no phase"):
        build_phase(CURRICULUM, corpora, tmp_path / "phase", 1)
    assert (tmp_path / "phase/thesis.tex").read_text() == "years of work"


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from data_tools.cli import main; main()", "curriculum", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(corpora, tmp_path):
    recipe = tmp_path / "order.yaml"
    phases = [{**CURRICULUM.model_dump(mode="json"), "name": name} for name in ("first", "second")]
    recipe.write_text(
        yaml.safe_dump({"corpora": {name: str(path) for name, path in corpora.items()}, "phases": phases})
    )

    done = run_command(recipe, "--output", tmp_path / "phases")
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    documents = sum(Phase(tmp_path / "phases" / name).documents for name in ("first", "second"))
    assert last.startswith(f"curriculum: 2 phases, {documents:,} documents, ")

    done = run_command(recipe, "phases[0].seed=5", "--output", tmp_path / "one", "--phase", "first", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["first"]
    assert Phase(tmp_path / "one/first").manifest["seed"] == 5

    done = run_command(recipe, "--output", tmp_path / "none", "--phase", "frist")
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {recipe}: no phase 'frist'; did you mean 'first'?"
    assert not (tmp_path / "none").exists()
