"""Every format gives the ids of the library that defines it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from benchmarks.qwen_vocabulary import write_tiktoken
from data_tools.reading.texts import texts
from data_tools.tokenizers.tiktoken_files import KNOWN
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError

# From tiktoken_ext/openai_public.py; tiktoken looks in its cache folder for the SHA-1 of this name.
CL100K_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
LITERALS = [
    "<|endoftext|>",
    "<|im_end|>",
    "</s>",
    "<s>",
    "<unk>",
    "<0x41>",
    "▁",
    " ",
    "\r\n",
    "中文",
    "e\u0301",
    "don't",
]
some_text = st.text() | st.lists(st.sampled_from(LITERALS)).map("".join)


@pytest.fixture(scope="module")
def cl100k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("quicktok", reason="quicktok-v1 ships the vocabulary")
    path = tmp_path_factory.mktemp("tiktoken") / "cl100k_base.tiktoken"
    write_tiktoken("cl100k", path)
    return path


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def sentencepiece_model(
    request: pytest.FixtureRequest, harvested: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text[:4000] for text, _ in texts([harvested / "math.train.jsonl"], "text")),
        model_writer=model,
        vocab_size=700,
        model_type=request.param,
        byte_fallback=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def test_a_sentencepiece_model_keeps_its_ids(sentencepiece_model: Path) -> None:
    tokenizer = TextTokenizer(sentencepiece_model)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (700, reference.eos_id())
    assert len(tokenizer.byte_ids) == 256

    @given(some_text)
    def agrees(text: str) -> None:
        ids = tokenizer.encode_batch([text])[0]
        assert ids == reference.encode(text)
        assert tokenizer.eod_id not in ids
        assert tokenizer.decode(ids) == reference.decode(ids)

    agrees()


def test_a_tiktoken_file_keeps_its_ids(cl100k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # tiktoken compares the file with the checksum of the published one, so the reference is the real encoding.
    shutil.copy(cl100k, tmp_path / hashlib.sha1(CL100K_ADDRESS.encode()).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    reference = tiktoken.get_encoding("cl100k_base")
    tokenizer = TextTokenizer(cl100k)
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (reference.n_vocab, reference.eot_token)
    assert KNOWN["cl100k_base"].special_tokens == reference._special_tokens
    assert len(tokenizer.byte_ids) == 128

    @given(some_text)
    def agrees(text: str) -> None:
        tokens, lengths = tokenizer.encode_flat(["x", text], append_eod=False)
        ids = tokens[lengths[0] :].tolist()
        assert ids == reference.encode_ordinary(text)
        assert tokenizer.decode(ids) == text

    agrees()


def test_known_patterns_are_the_librarys() -> None:
    from tiktoken_ext import openai_public

    assert KNOWN["r50k_base"].pattern == openai_public.r50k_pat_str
    source = Path(openai_public.__file__).read_text(encoding="utf-8")
    assert KNOWN["cl100k_base"].pattern in source
    assert all(part in source for part in _alternatives_of_o200k())


def _alternatives_of_o200k() -> list[str]:
    contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    marked = KNOWN["o200k_base"].pattern.replace(contractions, "CONTRACTIONS")
    return [part.replace("CONTRACTIONS", contractions) for part in marked.split("|")]


def write_ranks(folder: Path, name: str, description: object = None) -> Path:
    path = folder / name
    path.write_bytes(b"".join(b"%s %d\n" % (_base64(bytes([byte])), byte) for byte in range(256)))
    if description is not None:
        path.with_name(f"{name}.json").write_text(json.dumps(description), encoding="utf-8")
    return path


def _base64(token: bytes) -> bytes:
    import base64

    return base64.b64encode(token)


def test_a_description_beside_the_ranks_counts(tmp_path: Path) -> None:
    special = {"<end>": 300, "<|endoftext|>": 400}
    path = write_ranks(tmp_path, "own.tiktoken", {"pattern": ".", "special_tokens": special, "eod_token": "<end>"})
    tokenizer = TextTokenizer(tmp_path)
    assert (tokenizer.path, tokenizer.vocab_size, tokenizer.eod_id) == (path, 401, 300)
    assert tokenizer.encode_batch(["<end>é"]) == [list("<end>é".encode())]
    fingerprint = tokenizer.description()["fingerprint"]
    write_ranks(tmp_path, "own.tiktoken", {"pattern": "..", "special_tokens": special, "eod_token": "<end>"})
    assert TextTokenizer(path).description()["fingerprint"] != fingerprint


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, r"own\.tiktoken: nothing says how text is cut.*own\.tiktoken\.json"),
        ([], "needs a 'pattern'"),
        ({"pattern": "(", "special_tokens": {"<end>": 300}}, "tiktoken refuses"),
        ({"pattern": ".", "special_tokens": {"<end>": 255}}, "id 255 of 'special_tokens' is a rank"),
        ({"pattern": ".", "special_tokens": {"<end>": "300"}}, "must name the id"),
        ({"pattern": "."}, "--eod-token"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, description: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TextTokenizer(write_ranks(tmp_path, "own.tiktoken", description))


def test_a_wrong_line_of_ranks_is_named(tmp_path: Path) -> None:
    path = write_ranks(tmp_path, "qwen.tiktoken")
    path.write_bytes(path.read_bytes() + b"!!! 256\n")
    with pytest.raises(UserError, match=r"qwen\.tiktoken:257: not a base64 token"):
        TextTokenizer(path)


def test_an_added_end_of_document_becomes_special(tokenizer_path: Path, tmp_path: Path) -> None:
    library = Tokenizer.from_file(str(tokenizer_path))
    library.add_tokens([AddedToken("[DONE]", special=False), AddedToken("[THINK]", special=False)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, eod_token="[DONE]")
    ids = tokenizer.encode_batch(["a[DONE][THINK]"])[0]
    assert tokenizer.eod_id == 1024
    assert tokenizer.eod_id not in ids
    assert tokenizer.vocabulary["[THINK]"] in ids
    assert tokenizer.decode(ids) == "a[DONE][THINK]"


def test_ids_that_the_library_changes_are_refused(tokenizer_path: Path, tmp_path: Path) -> None:
    content = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": 2000, "content": "<|far|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="added tokens have ids that the library does not give them"):
        TextTokenizer(tmp_path)


def test_ids_are_stored_as_megatron_stores_them(cl100k: Path, tokenizer_path: Path, sentencepiece_model: Path) -> None:
    stored = [
        TextTokenizer(path).encode_flat(["a"], append_eod=True)[0].dtype
        for path in (cl100k, tokenizer_path, sentencepiece_model)
    ]
    assert stored == [np.int32, np.uint16, np.uint16]
