"""`kaiyuan-data tokenizer train`: which files it may write over."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from json_lines import write_rows

from data_tools.tokenizers.tokenizer import TextTokenizer
from data_tools.tokenizers.train_tokenizer import train_and_save
from megatron_kaiyuan.errors import UserError


def text_file(path: Path, seed: int) -> Path:
    """Words of random letters, enough of them to fill a small vocabulary."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(3, 8))) for _ in range(200)]
    return write_rows(path, [{"text": " ".join(drawn.choices(words, k=60))} for _ in range(60)])


def test_a_tokenizer_is_replaced_only_by_force_and_only_where_it_was_trained(tmp_path: Path) -> None:
    first, second = text_file(tmp_path / "a.jsonl", 3), text_file(tmp_path / "b.jsonl", 5)
    output = tmp_path / "tokenizer" / "tokenizer.json"
    train_and_save([first], "text", 520, output)
    once = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    assert once.keys() == {"tokenizer.json", "tokenizer_config.json", "tokenizer.manifest.json"}
    train_and_save([first], "text", 520, output)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == once
    for inputs, size in (([second], 520), ([first], 530)):
        with pytest.raises(UserError, match="holds a trained tokenizer already, made from something else"):
            train_and_save(inputs, "text", size, output)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == once
    train_and_save([first], "text", 530, output, force=True)
    assert TextTokenizer(output).vocab_size == 530


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.manifest.json"])
def test_files_of_the_user_are_refused_before_training(tmp_path: Path, name: str) -> None:
    """The text is too little for the vocabulary, so that training that began would fail otherwise."""
    text = write_rows(tmp_path.parent / f"{name}.jsonl", [{"text": "little"}])
    (tmp_path / name).write_text("{}")
    for force in (False, True):
        with pytest.raises(UserError, match=f"{name}: exists, and no record beside it"):
            train_and_save([text], "text", 520, tmp_path / "tokenizer.json", force)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "{}"
    with pytest.raises(UserError, match="is a folder, but --output names the file"):
        train_and_save([text], "text", 520, tmp_path)
