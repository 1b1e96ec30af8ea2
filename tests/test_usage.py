"""Both command lines: mistakes in one line, `~`, numbers, `--version` and completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import data_tools.cli
import megatron_kaiyuan.cli

Call = Callable[..., "Called"]

MAINS = {"kaiyuan": megatron_kaiyuan.cli.main, "kaiyuan-data": data_tools.cli.main}


class Called(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    # What a command's main sets for its process is gone with the test.
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    # As installed, not as a part of pytest's own program.
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)

    def run(words: str, **environment: str) -> Called:
        monkeypatch.setattr("sys.argv", words.split())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        try:
            MAINS[words.split()[0]]()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Called(code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kaiyuan train r.yaml --peak_lr 1e-3", "by a word after it, without dashes: data.phases.0.peak_lr=1e-3"),
        ("kaiyuan train r.yaml --lr 3e-4", "data.phases.0.peak_lr=3e-4"),
        ("kaiyuan train r.yaml --train.train_tokens=5k", "without dashes: train.train_tokens=5k"),
        ("kaiyuan train r.yaml --micro-batch-size 4", "without dashes: train.micro_batch_size=4"),
        ("kaiyuan train r.yaml --use-distributed-optimizer", "parallel.use_distributed_optimizer=true"),
        ("kaiyuan plan r.yaml --gpus 8 --gpu h100 --seq-length 8", "without dashes: train.seq_length=8"),
        ("kaiyuan-data curriculum o.yaml --rank-by tokens --output x", "without dashes: rank_by=tokens"),
        ("kaiyuan train r.yaml --chek", "--check"),
        ("kaiyuan train --check train.seed=7 r.yaml", "name the recipe first"),
        (
            "kaiyuan train",
            "kaiyuan train: missing argument 'recipe' (training recipe, a YAML file); as in: kaiyuan train "
            "mine/train.yaml; see kaiyuan train --help",
        ),
        (
            "kaiyuan plan r.yaml --gpu h100",
            "kaiyuan plan: missing --gpus (devices, one for each process); as in: kaiyuan plan ",
        ),
        ("kaiyuan plan r.yaml", "missing --gpus (devices, one for each process) and --gpu (h100, h200, a100, 910a, "),
        ("kaiyuan preprocess", "it is one of kaiyuan-data's, as kaiyuan-data preprocess"),
        ("kaiyuan-data train", "it is one of kaiyuan's, as kaiyuan train"),
        ("kaiyuan-data verify --thread 2 x", "--threads"),
        ("kaiyuan report ~nobody_of_this_name/x", "there is no user 'nobody_of_this_name'"),
        ("kaiyuan-data harvest out --megabytes nope", "'--megabytes': write a whole number"),
        ("kaiyuan-data preprocess --max-bad-rows -1", "'--max-bad-rows': write a whole number"),
        ("kaiyuan-data tokenizer train --input x --output y --vocab-size 32k", "32k may mean 32000, or the power"),
        ("kaiyuan checkpoint prune x --keep-last 2 --keep-every-tokens 0", "write a number from 1 on"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(call: Call, words: str, expected: str) -> None:
    done = call(words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: ") and expected in done.err


RELATIVE = {
    "kaiyuan train --check r.yaml": "r.yaml: recipe not found",
    "kaiyuan plan r.yaml --gpus 8 --gpu h100": "r.yaml: recipe not found",
    "kaiyuan probe r.yaml --plan": "r.yaml: recipe not found",
    "kaiyuan report r": "r/metrics.jsonl: metrics cannot be read (No such file or directory)",
    "kaiyuan compare r s": "r/metrics.jsonl: metrics cannot be read (No such file or directory)",
    "kaiyuan-data curriculum r.yaml --output x": "r.yaml: recipe not found",
    "kaiyuan-data quantile r --score s --output x": "r.idx: not found",
    "kaiyuan-data verify r": "r: corpus not found",
    "kaiyuan-data inspect r": "r: corpus not found",
    "kaiyuan-data merge r s --output-prefix x": "r: corpus not found",
    "kaiyuan-data score --corpus r --scorer rules": "r.idx: not found",
    "kaiyuan-data dedup --input r.jsonl --output x": "r.jsonl: input not found",
    "kaiyuan-data tokenizer train --input r.jsonl --output x.json --vocab-size 600": "r.jsonl: input not found",
    "kaiyuan-data preprocess --input r.jsonl --output-prefix x --tokenizer-model r": "not found",
}


@pytest.mark.parametrize("words", RELATIVE)
def test_a_relative_path_that_is_not_there_says_relative_to_what(call: Call, tmp_path: Path, words: str) -> None:
    done = call(words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"{RELATIVE[words]} (relative to {tmp_path})" in done.err


def test_an_absolute_path_that_is_not_there_needs_no_more_words(call: Call, tmp_path: Path) -> None:
    assert call(f"kaiyuan train --check {tmp_path}/r.yaml").err == f"error: {tmp_path}/r.yaml: recipe not found\n"


@pytest.mark.parametrize("program", MAINS)
def test_help_where_nothing_is_asked(call: Call, program: str) -> None:
    done = call(program)
    assert "--version" in done.out + done.err and "Traceback" not in done.err


@pytest.mark.parametrize("program", MAINS)
def test_version(call: Call, program: str) -> None:
    done = call(f"{program} --version")
    assert (done.code, done.out) == (0, f"megatron_kaiyuan {megatron_kaiyuan.__version__}\n")


@pytest.mark.parametrize(
    ("words", "found"),
    [("kaiyuan tr", ["train"]), ("kaiyuan train --dr", ["--dry-run"]), ("kaiyuan-data tokenizer i", ["inspect"])],
)
def test_completion(call: Call, words: str, found: list[str]) -> None:
    program = words.split()[0]
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    position = str(len(words.split()) - 1)
    done = call(program, **{variable: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position})
    assert done.out.split() == found, done.err


def test_home_in_words_and_options_and_numbers_with_units(call: Call, tmp_path: Path) -> None:
    texts = [f"{number * 7919:x} of {number % 97}" for number in range(4000)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text * 3}) + "\n" for text in texts))
    made = call("kaiyuan-data tokenizer train --input ~/text.jsonl --output ~/t/tokenizer.json --vocab-size 5.2e2")
    assert made.code == 0, made.err
    tokenizer = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 520
    words = "kaiyuan-data dedup --input a=~/text.jsonl --output ~/unique --workers 1 --max-bad-rows 1k --exact-only"
    assert call(words).code == 0
    assert (tmp_path / "unique" / "report.json").is_file()
    assert not (tmp_path / "~").exists()


def test_names_and_texts_are_utf8_in_any_locale(tmp_path: Path) -> None:
    """Python has UTF-8 by itself in the locale C only; without it a name of other letters is not what it is."""
    (tmp_path / "数据.jsonl").write_text('{"text": "你好"}\n', encoding="utf-8")
    command = [sys.executable, "-m", "data_tools", "dedup", "--input", "数据.jsonl", "--output", "out", "--exact-only"]
    odd = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    place = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, **odd, "PYTHONPATH": os.pathsep.join(place)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    assert manifest["datasets"][""]["files"] == ["数据.jsonl"]
