"""Sequences of a corpus as text, by the tokenizer that made it and no other."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_tools.corpora.corpus import CorpusWriter, Documents, manifest_path
from data_tools.corpora.corpus_files import read_manifest
from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.reading.inputs import find_inputs
from data_tools.reading.tasks import work_identity
from data_tools.tokenizers.decoding import CorpusText, decode_sample
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_sealed_json
from tests.helpers.files.json_lines import write_rows
from tests.helpers.processes.command import Command

TEXTS = ["def f(x): return x\n" * 5, "你好，世界。", "x = 1"]


@pytest.fixture
def prefix(tokenizer_path: Path, tmp_path: Path) -> Path:
    tokenizer = TextTokenizer(tokenizer_path)
    ids = [[*tokenizer.encode_batch([text])[0], tokenizer.eod_id] for text in TEXTS]
    with CorpusWriter(tmp_path / "c", tokenizer.description(), ["score"]) as writer:
        labels = ["code", "web", "code"]
        lengths, flat = [len(part) for part in ids], [token for part in ids for token in part]
        sizes = [len(text.encode()) for text in TEXTS]
        writer.add(Documents(np.array(flat), lengths, sizes, labels, labels, {"score": [0.0, 0.25, 0.5]}))
    return tmp_path / "c"


def test_with_and_without_a_manifest(prefix: Path) -> None:
    assert decode_sample(prefix, 1) == TEXTS[1] + "<|endoftext|>"
    manifest_path(prefix).unlink()
    metadata_path(prefix).unlink()
    assert decode_sample(prefix, 1).split()[-1] == "0"
    with pytest.raises(UserError, match="give one of 0 to 2"):
        decode_sample(prefix, 3)


def test_another_tokenizer_is_not_used_to_decode(prefix: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    manifest = json.loads(manifest_path(prefix).read_text())
    manifest["tokenizer"]["path"] = str(tmp_path / "gone.json")
    write_sealed_json(manifest_path(prefix), manifest)
    assert decode_sample(prefix, 0).split()[0].isdigit()
    assert decode_sample(prefix, 0, tokenizer_path).startswith("def f")
    manifest["tokenizer"].update(path=str(tokenizer_path), fingerprint="xxh3:0")
    write_sealed_json(manifest_path(prefix), manifest)
    with pytest.raises(UserError, match="is not the tokenizer that made"):
        decode_sample(prefix, 0)


def test_the_tokenizer_is_found_from_any_folder_and_after_a_move(
    tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = tmp_path / "lab"
    (lab / "tokens" / "own").mkdir(parents=True)
    (lab / "corpora").mkdir()
    shutil.copy(tokenizer_path, lab / "tokens" / "own" / "tokenizer.json")
    write_rows(lab / "in.jsonl", [{"text": text} for text in TEXTS])
    monkeypatch.chdir(lab)
    preprocess(["in.jsonl"], Path("corpora/c"), Settings(Path("tokens/own/tokenizer.json")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert CorpusText(lab / "corpora/c_text_document").texts([0, 1, 2]) == TEXTS
    lab.rename(tmp_path / "moved")
    assert CorpusText(tmp_path / "moved/corpora/c_text_document").texts([1]) == TEXTS[1:2]
    # The tokenizer is the one of its fingerprint, wherever it lies: the same command finds its corpus made already.
    monkeypatch.chdir(tmp_path / "moved")
    (tmp_path / "moved/tokens/own").rename(tmp_path / "moved/tokens/renamed")
    before = Path("corpora/c_text_document.bin").stat().st_mtime_ns
    settings = Settings(Path("tokens/renamed/tokenizer.json"))
    files, about = find_inputs(["in.jsonl"]), TextTokenizer(settings.tokenizer).description()
    assert read_manifest(Path("corpora/c_text_document"))["identity"] == work_identity(files, settings, about, "text")
    with pytest.raises(UserError, match=r"lab/tokens/own/tokenizer\.json: tokenizer not found, which made"):
        CorpusText(Path("corpora/c_text_document"))
    assert Path("corpora/c_text_document.bin").stat().st_mtime_ns == before


AWKWARD = [
    "  leading and trailing  ",
    "tab\tand\r\nnew\n\n",
    "e\u0301 and é",
    "👩‍👩‍👧 \ufeff \u200b",
    "<|endoftext|> spelt",
    "中文，混合 text",
    "\x00\x7f",
]


def write_corpus(tokenizer_file: Path, prefix: Path, texts: list[str]) -> Path:
    tokenizer = TextTokenizer(tokenizer_file)
    tokens, lengths = tokenizer.encode_flat(texts, append_eod=True)
    with CorpusWriter(prefix, tokenizer.description()) as writer:
        labels = [""] * len(texts)
        writer.add(Documents(tokens, lengths, [len(text.encode()) for text in texts], labels, labels))
    return prefix


def test_texts_come_back_byte_for_byte_from_lossless_tokenizers(tokenizer_path: Path, tmp_path: Path) -> None:
    texts = [*TEXTS, *AWKWARD]
    ranks = [base64.b64encode(bytes([byte])) + f" {byte}".encode() for byte in range(256)]
    (tmp_path / "bytes.tiktoken").write_bytes(b"\n".join([*ranks, base64.b64encode(b"te") + b" 256"]) + b"\n")
    about = {"pattern": "cl100k_base", "special_tokens": {"<|endoftext|>": 257}}
    (tmp_path / "bytes.tiktoken.json").write_text(json.dumps(about))
    for number, path in enumerate([tokenizer_path, tmp_path / "bytes.tiktoken"]):
        corpus = CorpusText(write_corpus(path, tmp_path / f"c{number}", texts))
        assert corpus.texts(range(len(texts))) == texts
        assert corpus.texts([5, 2]) == [texts[5], texts[2]]


def test_a_sentencepiece_model_gives_what_it_normalised(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog barks at night"] * 50),
        model_writer=model, vocab_size=290, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    prefix = write_corpus(tmp_path / "tokenizer.model", tmp_path / "c", ["the cat sat", "a  ﬁne   dog"])
    assert CorpusText(prefix).texts([0, 1]) == ["the cat sat", "a fine dog"]


def test_inspect_shows_a_sequence(prefix: Path, command: Command) -> None:
    found = json.loads(command("inspect", prefix, "--json", "--sequence", 2).stdout)
    assert found["sample"] == "x = 1<|endoftext|>"
    assert found["lengths"]["100%"] > 1
    printed = command("inspect", prefix).stdout
    assert "score: 0 to 0.5, mean 0.25" in printed
    assert "#" * 40 in printed
    assert printed.splitlines()[-1].startswith("inspect: 3 sequences")
