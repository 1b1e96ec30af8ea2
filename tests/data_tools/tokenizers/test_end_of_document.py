"""The files of a tokenizer's folder agree about the end of a document, or the command names those that do not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError
from tests.helpers.processes.command import Command

ENDS = ["<|endoftext|>", "<|im_end|>", "</s>"]


def write(path: Path, content: Any) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer with three special tokens, of ids 0, 257 and 258."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {ENDS[0]: 0, **{letter: i for i, letter in enumerate(letters, 1)}}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(ENDS)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({}, 0),
        ({"tokenizer_config.json": {"eos_token": "<|im_end|>"}}, 257),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {"eos_token": "</s>"}}, 258),
        ({"special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "lstrip": False}}}, 257),
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "special_tokens_map.json": {"eos_token": "</s>"}}, 258),
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "generation_config.json": {"eos_token_id": [257, 258]}}, 258),
        ({"config.json": {"eos_token_id": 0}, "added_tokens.json": {"<|im_end|>": 257}}, 0),
        ({"config.json": {"model_type": "llama"}}, 0),
    ],
)
def test_files_that_agree(folder: Path, files: dict[str, Any], end: int) -> None:
    from transformers import AutoTokenizer

    for name, content in files.items():
        write(folder / name, content)
    assert TextTokenizer(folder).eod_id == TextTokenizer(folder / "tokenizer.json").eod_id == end
    if "special_tokens_map.json" in files or "tokenizer_config.json" in files:
        configuration = files.get("tokenizer_config.json", {})
        write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **configuration})
        (folder / "config.json").unlink(missing_ok=True)
        assert AutoTokenizer.from_pretrained(folder).eos_token_id == end


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"tokenizer_config.json": {"eos_token": "<|end|>"}}, ["<|end|>", "tokenizer.json"]),
        ({"special_tokens_map.json": {"eos_token": "<|end|>"}}, ["<|end|>", "tokenizer.json"]),
        (
            {"tokenizer_config.json": {"eos_token": "</s>"}, "special_tokens_map.json": {"eos_token": "<|im_end|>"}},
            ["</s>", "<|im_end|>"],
        ),
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "config.json": {"eos_token_id": 257}}, ["258", "257"]),
        ({"generation_config.json": {"eos_token_id": [257, 258]}}, ["257 or 258", "the id 0 of", "tokenizer.json"]),
        ({"added_tokens.json": {"<|endoftext|>": 5}}, ["the id 5", "the id 0 of"]),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"7": {"content": "<|endoftext|>"}}}},
            ["the id 7", "the id 0 of"],
        ),
        ({"tokenizer_config.json": {"eos_token": 5}}, ["'eos_token' is 5"]),
        ({"tokenizer_config.json": '{"eos_token": "</s>", '}, ["cannot be read"]),
        ({"special_tokens_map.json": "[]"}, ["is not a JSON object"]),
        ({"generation_config.json": "{"}, ["cannot be read"]),
    ],
)
def test_files_that_disagree_are_named_and_the_option_settles_it(
    folder: Path, files: dict[str, Any], named: list[str]
) -> None:
    for name, content in files.items():
        write(folder / name, content)
    with pytest.raises(UserError) as error:
        TextTokenizer(folder)
    assert all(word in str(error.value) for word in [*files, *named, "--eod-token"])
    assert TextTokenizer(folder, eod_token="<|im_end|>").eod_id == 257


def test_a_model_of_sentencepiece_has_an_end_of_its_own(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words of text"] * 9),
        model_writer=model,
        vocab_size=30,
        model_type="bpe",
        control_symbols=["<|im_end|>"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    assert TextTokenizer(tmp_path).eod_id == 2
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: names '<\|im_end\|>'.*tokenizer\.model '</s>'"):
        TextTokenizer(tmp_path)
    assert TextTokenizer(tmp_path, eod_token="<|im_end|>").eod_id == 3


def test_a_corpus_of_a_named_end_is_measured_and_shown(folder: Path, command: Command) -> None:
    write(folder / "tokenizer_config.json", {"eos_token": "<|end|>"})
    write(folder / "in.jsonl", '{"text": "one"}\n')
    words = ("tokenizer", "inspect", folder, folder / "in.jsonl")
    refused = command(*words)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {folder}/tokenizer_config.json: names '<|end|>' as the end")
    measured = command(*words, "--eod-token", "</s>")
    assert measured.stdout.endswith("1.00 bytes/token, 0.00% byte tokens\n"), measured.stderr
    made = ("--output-prefix", folder / "c", "--tokenizer-model", folder, "--eod-token", "</s>", "--workers", 1)
    assert command("preprocess", "--input", folder / "in.jsonl", *made).returncode == 0
    assert command("inspect", folder / "c_text_document").stdout.startswith("one</s>\n")
