"""The identity of the tokenizer from the corpora's manifests to evaluation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.curriculum.build import build_recipe
from data_tools.tokenizers.tokenizer import TextTokenizer
from data_tools.tokenizers.train_tokenizer import save_tokenizer, train_tokenizer
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.data.tokenizer_identity import compare_folder, only_tokenizer, tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_sealed_json
from megatron_kaiyuan.train.run_length import check_training
from tests.helpers.files.phase_files import write_pair

VOCABULARY = 512


def write_tokenizer(folder: Path, letters: str) -> TextTokenizer:
    drawn = random.Random(1)
    words = ("".join(drawn.choices(letters, k=drawn.randint(2, 7))) for _ in range(2000))
    text = " ".join(words)
    save_tokenizer(train_tokenizer(lambda: [text], VOCABULARY), folder / "tokenizer.json")
    return TextTokenizer(folder)


def write_corpus(prefix: Path, tokenizer: TextTokenizer) -> Path:
    ids, lengths = tokenizer.encode_flat(["some words to learn from"] * 40, append_eod=True)
    names = [""] * len(lengths)
    with CorpusWriter(prefix, tokenizer.description()) as writer:
        writer.add(Documents(ids, lengths, [1] * len(lengths), names, names))
    return prefix


def write_order(folder: Path, corpora: dict[str, Path], phases: list[list[str]]) -> Path:
    recipe = {
        "corpora": {name: str(prefix) for name, prefix in corpora.items()},
        "phases": [
            {"name": f"phase_{number}", "order": "shuffle", "seed": 1, "datasets": [{"corpus": name} for name in names]}
            for number, names in enumerate(phases, start=1)
        ],
    }
    path = folder / "order.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of one tokenizer, one of another of the same size, and one of Megatron's own, whose tokenizer is unknown."""
    folder = tmp_path_factory.mktemp("corpora")
    ours = write_tokenizer(folder / "ours", "abcdefgh")
    theirs = write_tokenizer(folder / "theirs", "stuvwxyz")
    return {
        "one": write_corpus(folder / "one", ours),
        "two": write_corpus(folder / "two", ours),
        "other": write_corpus(folder / "other", theirs),
        "plain": write_pair(folder / "plain", [[1, 2, 3]] * 9),
    }


def test_the_fingerprint_is_the_corpus_manifests(corpora: dict[str, Path]) -> None:
    tokenizer = tokenizer_of_corpus(corpora["one"])
    recorded = json.loads(corpora["one"].with_name("one.manifest.json").read_text())["tokenizer"]
    assert tokenizer == {"file": "tokenizer.json", **{name: recorded[name] for name in recorded if name != "path"}}
    assert tokenizer_of_corpus(corpora["plain"]) is None


@pytest.mark.parametrize("phases", [[["one", "other"]], [["one"], ["other"]]], ids=["one-phase", "two-phases"])
def test_curriculum_refuses_two_tokenizers_and_writes_nothing(
    tmp_path: Path, corpora: dict[str, Path], phases: list[list[str]]
) -> None:
    recipe = write_order(tmp_path, corpora, phases)
    with pytest.raises(UserError, match=r"corpus 'other' .* another tokenizer than corpus 'one' .*fingerprint"):
        build_recipe(recipe, (), tmp_path / "phases", None, 1)
    assert not (tmp_path / "phases").exists()


def test_corpora_of_an_unknown_tokenizer_are_compared_with_nothing(tmp_path: Path, corpora: dict[str, Path]) -> None:
    build_recipe(write_order(tmp_path, corpora, [["one", "plain"]]), (), tmp_path / "phases", None, 1)
    folder = tmp_path / "phases" / "phase_1"
    assert [entry["tokenizer"] for entry in Phase(folder).manifest["corpora"]] == [
        tokenizer_of_corpus(corpora["one"]),
        None,
    ]
    assert TokenStream([folder], VOCABULARY).tokenizer == tokenizer_of_corpus(corpora["one"])


def test_training_refuses_phases_of_two_tokenizers(tmp_path: Path, corpora: dict[str, Path]) -> None:
    folders = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        build_recipe(write_order(tmp_path / name, corpora, [[name]]), (), tmp_path / name, None, 1)
        folders.append(tmp_path / name / "phase_1")
    with pytest.raises(UserError, match=r"other \(phase .*another tokenizer than .*one \(phase"):
        TokenStream(folders, VOCABULARY, check=None)

    # A phase of before the manifest named the tokenizer has it from its corpora.
    path = folders[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["corpora"]:
        del entry["tokenizer"]
    write_sealed_json(path, manifest)
    with pytest.raises(UserError, match="another tokenizer"):
        TokenStream(folders, VOCABULARY, check=None)


@pytest.mark.parametrize(("vocab_size", "fits"), [(511, None), (512, True), (640, True), (1024, True), (1025, False)])
def test_check_compares_the_vocabulary_with_the_tokenizer(
    tmp_path: Path,
    corpora: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    vocab_size: int,
    fits: bool | None,
) -> None:
    build_recipe(write_order(tmp_path, corpora, [["one"]]), (), tmp_path / "phases", None, 1)
    recipe = {
        "run_dir": str(tmp_path / "run"),
        "platform": "cpu",
        "model": {"preset": "kaiyuan-tiny", "vocab_size": vocab_size},
        "data": {"phases": [{"path": str(tmp_path / "phases" / "phase_1"), "peak_lr": 1e-3}]},
        "train": {"seq_length": 16, "micro_batch_size": 1, "global_batch_size": 1},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    if fits is None:
        with pytest.raises(UserError, match="vocab_size 511 is below the 512 ids"):
            check_training(tmp_path / "train.yaml", (), 1)
        return
    check_training(tmp_path / "train.yaml", (), 1)
    assert ("far above the 512 ids of the tokenizer" in capsys.readouterr().err) is not fits


def test_a_folder_is_compared_by_the_file_that_made_the_corpora(tmp_path: Path, corpora: dict[str, Path]) -> None:
    tokenizer = tokenizer_of_corpus(corpora["one"])
    assert tokenizer is not None
    folders = corpora["one"].parent
    assert compare_folder(tokenizer, folders / "ours") == "same"
    assert compare_folder(tokenizer, folders / "theirs") == "other"
    assert compare_folder({**tokenizer, "file": "cl100k_base.tiktoken"}, folders / "theirs") == "unknown"
    assert compare_folder({**tokenizer, "file": "tokenizer.model"}, folders / "theirs") == "unknown"


def test_evaluation_refuses_corpora_of_another_tokenizer(corpora: dict[str, Path]) -> None:
    from megatron_kaiyuan.evaluate.heldout import check_tokenizer, open_corpora

    folders = corpora["one"].parent
    check_tokenizer(folders / "ours", open_corpora([corpora["one"], corpora["plain"]]))
    with pytest.raises(UserError, match=r"one: made by another tokenizer than the one in .*theirs"):
        check_tokenizer(folders / "theirs", open_corpora([corpora["one"]]))


def test_export_refuses_another_tokenizer_and_reports_an_unknown_one(
    corpora: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from megatron_kaiyuan.export.run import check_tokenizer

    folders, checkpoint = corpora["one"].parent, Path("step_10")
    check_tokenizer(tokenizer_of_corpus(corpora["one"]), folders / "ours", checkpoint)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="theirs: is not the tokenizer that made the corpora of step_10"):
        check_tokenizer(tokenizer_of_corpus(corpora["one"]), folders / "theirs", checkpoint)
    with pytest.raises(UserError, match=r"nowhere/tokenizer.json: tokenizer not found"):
        check_tokenizer(tokenizer_of_corpus(corpora["one"]), folders / "nowhere", checkpoint)
    assert capsys.readouterr().err == "", "it is not there, which is not to be unknown"
    check_tokenizer(None, folders / "theirs", checkpoint)
    assert "cannot be compared with the tokenizer of step_10's corpora" in capsys.readouterr().err


def test_another_end_of_document_is_another_tokenizer(corpora: dict[str, Path]) -> None:
    tokenizer = tokenizer_of_corpus(corpora["one"])
    assert tokenizer is not None
    with pytest.raises(UserError, match=r"b was made by another tokenizer than a .eod_id 7, not"):
        only_tokenizer([("x", None), ("a", tokenizer), ("b", {**tokenizer, "eod_id": 7})], "")
