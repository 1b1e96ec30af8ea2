"""`kaiyuan init`: what it writes can be used as it is, and replaces nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.curriculum.build import build_recipe
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.starter.init import SCRIPTS, init
from megatron_kaiyuan.starter.sizes import SIZES, size_for
from megatron_kaiyuan.train.run_length import check_training

ROOT = Path(__file__).parents[2]


def write_corpus(prefix: Path, scores: list[str], documents: int = 300, vocab: int = 9000) -> str:
    drawn = np.random.default_rng(len(scores))
    lengths = drawn.integers(20, 200, documents)
    tokens = drawn.integers(0, vocab, lengths.sum())
    tokenizer = {"path": "tokenizer.json", "fingerprint": "xxh3:0", "vocab_size": vocab, "eod_id": 0}
    columns = {name: drawn.random(documents).tolist() for name in scores}
    with CorpusWriter(prefix, tokenizer, scores) as writer:
        names = ["test"] * documents
        writer.add(Documents(tokens.astype(np.int64), lengths.tolist(), [1] * documents, names, names, columns))
    return f"{prefix.name}={prefix}"


@pytest.mark.parametrize("columns", [["score", "other"], ["edu"], []])
def test_recipes_for_corpora_pass_the_check(columns: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From any folder, under a name with a space; the vocabulary is the corpora's."""
    words = [write_corpus(tmp_path / "first", columns), write_corpus(tmp_path / "second", [])]
    monkeypatch.chdir(tmp_path)
    said = init(Path("a folder"), [words[0], "second=second.idx"], "kaiyuan-tiny", "score")
    folder = tmp_path / "a folder"
    assert f"kaiyuan-data curriculum '{folder}/order.yaml' --output '{folder}/phases'" in said
    monkeypatch.chdir("/")
    order = yaml.safe_load((folder / "order.yaml").read_text())
    assert [phase["name"] for phase in order["phases"]] == ["phase_1", "phase_2"][: 2 if "score" in columns else 1]
    build_recipe(folder / "order.yaml", (), folder / "phases", None, 1)
    assert "steps" in check_training(folder / "train.yaml", [], 1)
    train = yaml.safe_load((folder / "train.yaml").read_text())
    assert train["model"]["vocab_size"] == 9000
    tokens = sum(np.fromfile(f"{word.partition('=')[2]}.bin", "<u2").size for word in words)
    per_step = train["train"]["global_batch_size"] * train["train"]["seq_length"]
    assert tokens // per_step >= 100 and train["optimizer"]["warmup_tokens"] <= tokens // 20


def test_held_out_corpora_are_validated_on(tmp_path: Path):
    """The recipe passes the check with them; without them it shows how, and passes too."""
    corpus, english, code = (write_corpus(tmp_path / name, []) for name in ("web", "english", "code"))
    for name, held_out in (("with", [english, code]), ("without", [])):
        init(tmp_path / name, [corpus], "kaiyuan-tiny", "score", held_out)
        build_recipe(tmp_path / name / "order.yaml", (), tmp_path / name / "phases", None, 1)
        check_training(tmp_path / name / "train.yaml", [], 1)
    found = yaml.safe_load((tmp_path / "with" / "train.yaml").read_text())["validation"]["corpora"]
    assert found == {"english": str(tmp_path / "english"), "code": str(tmp_path / "code")}
    text = (tmp_path / "without" / "train.yaml").read_text()
    shown = "\n".join(line.removeprefix("# ") for line in text[text.index("# validation:") :].splitlines())
    assert set(yaml.safe_load(shown)["validation"]["corpora"]) == {"web", "code"}
    with pytest.raises(UserError, match="--held-out mine: is --corpus web too"):
        init(tmp_path / "x", [corpus], "kaiyuan-tiny", "score", [corpus.replace("web=", "mine=")])
    assert not (tmp_path / "x").exists()


def test_everything_that_help_and_advice_name_is_there(tmp_path: Path):
    init(tmp_path / "x", [], "kaiyuan-tiny", "score")
    written = {str(path.relative_to(tmp_path / "x")) for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert {f"launch/{name}" for name in SCRIPTS} < written
    pages = {f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md")}
    assert pages < written and "launch/recipes/kaiyuan-2b/train.yaml" in written
    assert os.access(tmp_path / "x" / "launch" / "train.sh", os.X_OK)
    assert not list((tmp_path / "x").rglob("*.tmp*"))
    environment = (tmp_path / "x" / "launch" / "environment").read_text()
    assert Path(environment.strip()) == Path(sys.executable).parent


def test_scripts_find_the_environment_that_wrote_them(tmp_path: Path):
    """Without an active environment, from another folder, in which a file has a module's name."""
    write_corpus(tmp_path / "web", ["score"])
    init(tmp_path / "x", [f"web={tmp_path / 'web'}"], "kaiyuan-tiny", "score")
    build_recipe(tmp_path / "x" / "order.yaml", (), tmp_path / "x" / "phases", None, 1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "typer.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [tmp_path / "x" / "launch" / "torchrun.sh", "--dry-run", tmp_path / "x" / "train.yaml"],
        env={"PATH": "/usr/bin:/bin"},
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "-m megatron_kaiyuan.cluster.torchrun" in done.stdout.splitlines()[-1].replace("'", "")


def test_nothing_is_replaced(tmp_path: Path):
    """The same command again adds what is missing; a file of the user's stops it before anything is written."""
    folder = tmp_path / "x"
    init(folder, [], "kaiyuan-tiny", "score")
    (folder / "launch" / "train.sh").unlink()
    init(folder, [], "kaiyuan-tiny", "score")
    assert (folder / "launch" / "train.sh").is_file()
    (folder / "launch" / "train.sh").unlink()
    (folder / "train.yaml").write_text("mine: 1\n")
    with pytest.raises(UserError, match=r"train\.yaml: exists with another content; name another DIR"):
        init(folder, [], "kaiyuan-tiny", "score")
    assert (folder / "train.yaml").read_text() == "mine: 1\n" and not (folder / "launch" / "train.sh").exists()


def test_mistakes(tmp_path: Path):
    word = write_corpus(tmp_path / "web", [])

    def mistake(*words: str, preset: str = "kaiyuan-tiny") -> str:
        with pytest.raises(UserError) as error:
            init(tmp_path / "x", words, preset, "score")
        assert not (tmp_path / "x").exists()
        return str(error.value)

    assert "write NAME=PREFIX" in mistake(str(tmp_path / "web"))
    assert "named twice" in mistake(word, word)
    assert f"{tmp_path / 'none'}.idx" in mistake(f"none={tmp_path / 'none'}")
    assert "kaiyuan-tiny, kaiyuan-2b" in mistake(word, preset="kaiyuan_tiny")
    write_corpus(tmp_path / "short", [], documents=1)
    assert "one sample of kaiyuan-2b takes 4,096" in mistake(f"short={tmp_path / 'short'}", preset="kaiyuan-2b")


@pytest.mark.parametrize("preset", SIZES)
def test_sizes(preset: str):
    """More tokens never make a smaller batch; micro-batches divide it; the warm-up is short."""
    assert size_for(preset, 0) == SIZES[preset]
    sizes = [(tokens, size_for(preset, tokens)) for tokens in (10**n for n in range(4, 14))]
    batches = [size.global_batch_size for _, size in sizes]
    assert batches == sorted(batches) and batches[-1] == SIZES[preset].global_batch_size
    for tokens, size in sizes:
        assert size.global_batch_size % size.micro_batch_size == 0 and size.warmup_tokens * 20 <= tokens
        assert tokens >= 200 * size.tokens_per_step or size.global_batch_size == 1
