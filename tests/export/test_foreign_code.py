"""No door runs Python code that a model's or a tokenizer's folder brings along, whoever answers the question."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.export import export_model
from megatron_kaiyuan.export.huggingface import Form
from tests.helpers.files.word_tokenizer import write_tokenizer
from tests.helpers.processes.rank_server import run
from tests.helpers.references.network import SHAPE, random_weights
from tests.helpers.training.tiny_model import write_corpus, write_model, write_text

OWN = Form("kaiyuan")
_DOORS = """
import sys
from pathlib import Path
from megatron_kaiyuan.checkpoint.huggingface import HuggingFaceFolder
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.loading import load_network, load_tokenizer
for folder in map(Path, sys.argv[1:]):
    for door in (load_network, load_tokenizer, HuggingFaceFolder):
        try:
            door(folder)
            print(folder.name, door.__name__, "read")
        except UserError as error:
            print(folder.name, door.__name__, "refused:", error)
"""


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def with_code(folder: Path, *, model_type: str | None = None, tokenizer_class: str | None = None) -> Path:
    """A model's folder whose code, wherever transformers would look for it, leaves a file `mark`."""
    write_model(folder)
    code = f"open({str(folder / 'mark')!r}, 'w').close()\nclass Mine: pass\n"
    for name in ("modeling_mine", "configuration_mine", "tokenization_mine"):
        (folder / f"{name}.py").write_text(code)
    models = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine"}
    tokenizers = {"AutoTokenizer": ["tokenization_mine.Mine", "tokenization_mine.Mine"]}
    change(folder / "config.json", auto_map={**models, **tokenizers})
    change(folder / "tokenizer_config.json", auto_map=tokenizers)
    if model_type:
        change(folder / "config.json", model_type=model_type)
    if tokenizer_class:
        change(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    return folder


def exported_with_code(folder: Path) -> Path:
    """A folder of `--format kaiyuan` in which someone has exchanged the Python file."""
    model = ModelConfig(**SHAPE)
    export_model(random_weights(model, seed=1), model, folder, write_tokenizer(folder.parent / "words", 40), form=OWN)
    (folder / "modeling_kaiyuan.py").write_text(f"open({str(folder / 'mark')!r}, 'w').close()\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    return {
        "known": with_code(folder / "known"),
        "model": with_code(folder / "model", model_type="mine"),
        "tokenizer": with_code(folder / "tokenizer", tokenizer_class="Mine"),
        "exported": exported_with_code(folder / "exported"),
    }


def answered_yes(*program: object) -> subprocess.CompletedProcess[str]:
    # Offline as the tests are: nothing of this needs a network.
    return run(1, program, imported="evaluation", typed="y\n" * 20)


def test_models_tokenizers_and_initial_weights(folders: dict[str, Path]) -> None:
    done = answered_yes("-c", _DOORS, *folders.values())
    assert done.returncode == 0, done.stderr
    assert not [folder for folder in folders.values() if (folder / "mark").exists()]
    assert "Do you wish to run" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    # Where transformers has a class of its own for the folder it takes that one.
    assert "known load_network read" in lines and "known load_tokenizer read" in lines
    # And of this project's own format the class of this package.
    assert {f"exported {door} read" for door in ("load_network", "load_tokenizer", "HuggingFaceFolder")} <= {*lines}
    assert any(line.startswith("model load_network refused: ") for line in lines), done.stdout


@pytest.mark.parametrize("which", ["model", "tokenizer"])
def test_evaluation(tmp_path: Path, folders: dict[str, Path], which: str) -> None:
    corpus = write_corpus(tmp_path / "a_text_document", [[0, 1, 2, 3] * 8])
    text = write_text(tmp_path / "a.jsonl", "a", 14, 60, seed=1)
    arguments = [
        "--held-out",
        str(corpus),
        "--held-out-text",
        str(text),
        "--output",
        str(tmp_path / "out" / "eval.json"),
    ]
    done = answered_yes("-m", "megatron_kaiyuan.cli", "eval", folders[which], *arguments)
    assert not (folders[which] / "mark").exists()
    assert "Do you wish to run" not in done.stdout + done.stderr
    if which == "model":
        assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr
