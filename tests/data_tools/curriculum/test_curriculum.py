"""From a recipe and corpora to phase folders: every figure of the artefact recomputed, and the command's errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_tools import _index
from data_tools.corpora.corpus import CorpusWriter
from data_tools.curriculum.build import build_phase, build_recipe
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.phase import STRIDE, Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum
from tests.helpers.files.small_corpora import numbered_corpus, write_corpus

SIZES = {"code": 2600, "wiki": 700, "maths": 1}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three corpora of short documents; code's scores have many ties, maths is one document."""
    folder = tmp_path_factory.mktemp("corpora")
    generator = np.random.default_rng(3)
    prefixes = {}
    for first, (name, size) in enumerate(SIZES.items()):
        lengths = generator.integers(1, 9, size).tolist()
        scores = {"score": generator.integers(0, 20, size).astype(float).tolist()}
        prefixes[name] = numbered_corpus(folder / f"{name}_text_document", lengths, 100 * first, scores=scores)
    return prefixes


def large_corpus(prefix: Path, lengths: np.ndarray, scores: np.ndarray) -> Path:
    """What a build reads of a corpus of many documents; its tokens are a hole in a file."""
    writer = _index.IndexWriter(os.fsencode(f"{prefix}.idx"), 8)
    writer.add(lengths.astype(np.int32))
    writer.finish()
    os.truncate(os.open(f"{prefix}.bin", os.O_CREAT | os.O_RDWR), 2 * int(lengths.sum()))
    pq.write_table(pa.table({"score": scores}), f"{prefix}.meta.parquet")
    return prefix


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


def test_the_artefact_is_what_its_manifest_says(corpora: dict[str, Path], tmp_path: Path) -> None:
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


def test_selection_repetition_and_rising_quality(corpora: dict[str, Path], tmp_path: Path) -> None:
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


def test_the_profile_adds_up(corpora: dict[str, Path], tmp_path: Path) -> None:
    build_phase(CURRICULUM, corpora, tmp_path / "phase", threads=1)
    profile = json.loads((tmp_path / "phase/profile.json").read_text())
    manifest = json.loads((tmp_path / "phase/manifest.json").read_text())
    assert profile["tokens"][-1] == manifest["tokens"]
    assert len(profile["tokens"]) == 50
    assert {name: sum(parts["tokens"]) for name, parts in profile["datasets"].items()} == {
        entry["name"]: entry["tokens"] for entry in manifest["corpora"]
    }
    quality = profile["datasets"]["code"]["mean_quantile"]
    assert np.all(np.diff(quality) >= -1e-9)
    assert 0.6 <= quality[0] <= quality[-1] <= 1
    assert np.mean(quality) == pytest.approx(0.8, abs=0.01)
    assert set(profile["datasets"]["wiki"]["mean_quantile"]) == {None}
    widths = np.diff([0, *profile["tokens"]])
    shares = np.sum([parts["tokens"] for parts in profile["datasets"].values()], axis=0)
    assert shares.tolist() == widths.tolist()


def test_same_recipe_same_bytes_and_seeds_and_phases_differ(corpora: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "phase"
    build_phase(CURRICULUM, corpora, folder, threads=1)
    once = files(folder)
    build_phase(CURRICULUM, corpora, folder, threads=3)
    assert files(folder) == once
    for change in ({"seed": 9}, {"name": "other"}):
        with pytest.raises(UserError, match="holds a phase already, made from something else"):
            build_phase(CURRICULUM.model_copy(update=change), corpora, folder, threads=1)
        build_phase(CURRICULUM.model_copy(update=change), corpora, folder, threads=1, force=True)
        assert files(folder)["order.bin"] != once["order.bin"]
    assert not list(tmp_path.glob("*.tmp"))


def test_top_fractions_of_phases_are_nested_and_random_ones_independent(
    corpora: dict[str, Path], tmp_path: Path
) -> None:
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


def test_a_stock_megatron_corpus_without_metadata(corpora: dict[str, Path], tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path / "stock", [[1, 2], [3]])
    for suffix in (".meta.parquet", ".manifest.json"):
        Path(f"{prefix}{suffix}").unlink()
    build_phase(phase_recipe({"corpus": "stock"}, order="shuffle"), {"stock": prefix}, tmp_path / "phase", 1)
    assert Phase(tmp_path / "phase").manifest["corpora"][0]["max_token_id"] is None
    with pytest.raises(UserError, match=r"stock\.meta\.parquet: not found, so the corpus has no score 'score'"):
        scored = phase_recipe({"corpus": "stock", "score": "score"})
        build_phase(scored, {"stock": prefix}, tmp_path / "scored", 1)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"corpus": "code", "score": "scroe"}, r"unknown score column 'scroe'; did you mean 'score'\?"),
        ({"corpus": "code", "score": "domain"}, "column 'domain' holds no numbers"),
        ({"corpus": "maths", "keep": "random 0.4"}, "is empty after filtering: keep 'random 0.4' leaves 0"),
        ({"corpus": "holed", "score": "score"}, "corpus 'holed': 1 of 3 scores 'score' are missing; score it again"),
        ({"corpus": "absent"}, r"absent\.idx: corpus index not found"),
    ],
)
def test_refuses(corpora: dict[str, Path], tmp_path: Path, dataset: dict[str, str], message: str) -> None:
    holed = write_corpus(tmp_path / "holed", [[1], [2], [3]], {"score": [1.0, float("nan"), 0.5]})
    prefixes = {**corpora, "holed": holed, "absent": tmp_path / "absent"}
    with pytest.raises(UserError, match=message):
        build_phase(phase_recipe(dataset), prefixes, tmp_path / "phase", 1)
    assert not (tmp_path / "phase").exists()


def test_missing_scores_are_left_out_or_lowest_and_counted(tmp_path: Path) -> None:
    scores = [1.0, float("nan"), 0.5, float("nan"), 2.0]
    prefix = write_corpus(tmp_path / "holed", [[1]] * 5, {"score": scores})
    for policy, expected in (("drop", [2, 0, 4]), ("lowest", [1, 3, 2, 0, 4])):
        phase = phase_recipe({"corpus": "holed", "score": "score", "missing_scores": policy})
        built = build_phase(phase, {"holed": prefix}, tmp_path / policy, 1)
        _, sequences = read_order(tmp_path / policy)
        assert sequences.tolist() in (expected, [3, 1, 2, 0, 4])
        assert json.loads((tmp_path / policy / "manifest.json").read_text())["corpora"][0]["missing_scores"] == 2
        assert "holed: 2 documents without score" in str(built)


def test_exposure_counts_every_copy_by_tenths_of_the_corpus(corpora: dict[str, Path], tmp_path: Path) -> None:
    build_phase(CURRICULUM, corpora, tmp_path / "phase", threads=1)
    exposure = json.loads((tmp_path / "phase/profile.json").read_text())["exposure"]
    assert [group["corpus_documents"] for group in exposure["code"]["groups"]] == [260] * 10
    assert [group["documents"] for group in exposure["code"]["groups"]] == [0] * 6 + [260] * 4
    (wiki,) = exposure["wiki"]["groups"]
    assert wiki["corpus_documents"] == 700
    assert 2 < wiki["documents"] / 700 < 3


@pytest.mark.parametrize(
    "more",
    [{}, {"rank_by": "tokens", "perturb": 300.0}, {"order": "shuffle"}, {"tokens": 4000}],
    ids=str,
)
def test_a_budget_of_memory_changes_no_byte(tmp_path: Path, more) -> None:
    """With the least memory, rows beyond 16 MiB go to files."""
    generator = np.random.default_rng(6)
    size = 1_500_000
    prefix = large_corpus(tmp_path / "large", generator.integers(1, 9, size), generator.random(size))
    phase = phase_recipe({"corpus": "large", "score": "score", "keep": "top 0.9"}, **more)
    for memory, name in ((97 << 20, "small"), (4 << 30, "large_memory")):
        build_phase(phase, {"large": prefix}, tmp_path / name, threads=2, memory=memory)
    small, large = files(tmp_path / "small"), files(tmp_path / "large_memory")
    assert small == large


@pytest.mark.parametrize("is_there", [False, True])
def test_an_optional_dataset_may_be_absent_or_empty(corpora: dict[str, Path], tmp_path: Path, is_there: bool) -> None:
    prefixes = {**corpora, "absent": tmp_path / "absent"}
    if is_there:
        with CorpusWriter(tmp_path / "absent", {"path": "t", "fingerprint": "xxh3:0", "vocab_size": 9, "eod_id": 0}):
            pass
    absent = {"corpus": "absent", "score": "score", "optional": True}
    built = build_phase(phase_recipe(absent, {"corpus": "maths"}), prefixes, tmp_path / "phase", 1)
    assert "absent left out: optional" in str(built)
    assert [entry["name"] for entry in Phase(tmp_path / "phase").manifest["corpora"]] == ["maths"]
    with pytest.raises(UserError, match="all its corpora are optional and none holds a document"):
        build_phase(phase_recipe(absent), prefixes, tmp_path / "other", 1)


def test_a_phase_that_whole_documents_carry_past_its_budget_is_reported(tmp_path: Path) -> None:
    lengths = np.array([10] * 40 + [400], np.int32)
    prefix = large_corpus(tmp_path / "long", lengths, np.zeros(len(lengths)))
    told = []
    for seed in range(40):
        recipe = phase_recipe({"corpus": "long"}, order="shuffle", seed=seed, tokens=500)
        built = build_phase(recipe, {"long": prefix}, tmp_path / str(seed), 1)
        assert 500 <= built.tokens < 900
        told.append(bool(built.notes))
        assert told[-1] == (built.tokens > 505)
        if told[-1]:
            assert (
                f"500 tokens were asked for, {built.tokens} are here (+{built.tokens / 500 - 1:.1%})" in built.notes[0]
            )
    assert any(told) and not all(told)


def test_does_not_replace_a_folder_of_other_things(corpora: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "phase").mkdir()
    (tmp_path / "phase/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a phase"):
        build_phase(CURRICULUM, corpora, tmp_path / "phase", 1)
    assert (tmp_path / "phase/thesis.tex").read_text() == "years of work"


def test_of_two_recipes_at_once_one_gets_every_phase(corpora: dict[str, Path], tmp_path: Path) -> None:
    """Whichever order their phases are in; each alone would take the first phase of its own."""
    order, results = {}, {}
    for seed, names in ((1, ("first", "second")), (2, ("second", "first"))):
        (tmp_path / f"recipe_{seed}").mkdir()
        phases = [{"name": name, "order": "shuffle", "seed": seed, "datasets": [{"corpus": "code"}]} for name in names]
        order[seed] = recipe_file(tmp_path / f"recipe_{seed}", corpora, *phases)

    def build(seed: int) -> None:
        try:
            results[seed] = build_recipe(order[seed], (), tmp_path / "phases", None, 1)
        except UserError as error:
            results[seed] = str(error)

    threads = [threading.Thread(target=build, args=(seed,)) for seed in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [seed for seed, result in results.items() if result.startswith("curriculum: 2 phases")]
    assert "first: holds a phase already, made from something else" in results[3 - winner]
    assert {Phase(tmp_path / "phases" / name).manifest["seed"] for name in ("first", "second")} == {winner}


SETRLIMIT = """
import resource, signal, sys
sys.dont_write_bytecode = True  # the limit would cut it off
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
signal.signal(signal.SIGXFSZ, signal.{action})
from data_tools.cli import main
main()
"""


def recipe_file(folder: Path, corpora: dict[str, Path], *phases: dict) -> Path:
    recipe = folder / "order.yaml"
    recipe.write_text(
        yaml.safe_dump({"corpora": {name: str(path) for name, path in corpora.items()}, "phases": list(phases)})
    )
    return recipe


def test_a_killed_build_leaves_no_phase_and_the_next_one_takes_its_place(
    corpora: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_file(tmp_path, corpora, CURRICULUM.model_dump(mode="json", exclude_unset=True))
    arguments = ["curriculum", str(recipe), "--output", str(tmp_path / "phases"), "--threads", "1"]

    def run(action: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SETRLIMIT.format(action=action), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    killed = run("SIG_DFL")  # the system ends the process where its file grows too large, in mid-write
    assert killed.returncode < 0
    (left,) = (tmp_path / "phases").glob("phase*")
    assert re.fullmatch(r"phase\.[0-9a-f]{8}\.tmp", left.name)
    with pytest.raises(UserError, match="not found"):
        Phase(left)

    refused = run("SIG_IGN")  # the same as an error, as a full disk would be
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith(
        "cannot be written (File too large); free some space, or write elsewhere"
    )
    assert not list((tmp_path / "phases").iterdir())

    assert run_command(*arguments[1:]).returncode == 0
    assert [path.name for path in (tmp_path / "phases").iterdir()] == ["phase"]
    assert Phase(tmp_path / "phases/phase").documents


@pytest.mark.parametrize(("size", "message"), [("4X", "write a size such as 512M or 4G"), ("9M", "need at least 97M")])
def test_memory_that_is_no_size_or_too_little(
    corpora: dict[str, Path], tmp_path: Path, size: str, message: str
) -> None:
    recipe = recipe_file(tmp_path, corpora, CURRICULUM.model_dump(mode="json", exclude_unset=True))
    done = run_command(recipe, "--output", tmp_path / "phases", "--memory", size)
    assert done.returncode == 2
    assert message in done.stderr


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from data_tools.cli import main; main()", "curriculum", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(corpora: dict[str, Path], tmp_path: Path) -> None:
    phases = [{**CURRICULUM.model_dump(mode="json", exclude_unset=True), "name": name} for name in ("first", "second")]
    recipe = recipe_file(tmp_path, corpora, *phases)

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


@pytest.mark.parametrize("wrong", [{"score": "qualty"}, {"corpus": "gone"}])
def test_a_mistake_in_a_later_phase_is_found_before_the_first_is_built(
    corpora: dict[str, Path], tmp_path: Path, wrong: dict[str, str]
) -> None:
    name = next(iter(corpora))
    named = {**{key: str(prefix) for key, prefix in corpora.items()}, "gone": str(tmp_path / "gone")}
    phases = [
        {"name": "first", "order": "shuffle", "datasets": [{"corpus": name}]},
        {"name": "second", "order": "curriculum", "datasets": [{"corpus": name, **wrong}]},
    ]
    recipe = tmp_path / "order.yaml"
    recipe.write_text(yaml.safe_dump({"corpora": named, "phases": phases}))
    with pytest.raises(UserError, match=r"unknown score column .qualty.|gone.idx: corpus index not found"):
        build_recipe(recipe, [], tmp_path / "phases", None, 1)
    assert not (tmp_path / "phases" / "first").exists()
