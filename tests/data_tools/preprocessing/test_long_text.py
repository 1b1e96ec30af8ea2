"""Long texts: encoded in pieces with the same ids, in bounded memory, and found whole in the corpus."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from data_tools.preprocessing import long_text
from data_tools.preprocessing.long_text import encode_texts
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.data.indexed import IndexedCorpus
from tests.helpers.files.json_lines import read_rows, write_rows

WORDS = [
    "the",
    "of ",
    " in",
    "tokens",
    "\n",
    "\n\n",
    "  ",
    "def f(x):",
    "你好世界",
    "。",
    "，",
    "don't",
    "1234",
    "\r\n",
]
CHARACTERS = st.lists(st.sampled_from([*WORDS, "🙂", "\t", "é", "e\u0301", " \n "]), max_size=80)


@pytest.fixture(scope="module")
def tokenizers(harvested: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TextTokenizer]:
    """Ours, one of bytes after a prefix, and one that puts a mark before the text and knows no cuts at all."""
    texts = [row["text"] for row in read_rows(harvested / "math.train.jsonl")]
    folder = tmp_path_factory.mktemp("tokenizers")
    found = [TextTokenizer(tokenizer_path, engine="reference")]
    for name, before in (
        ("bytes", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        ("mark", pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    ):
        made = Tokenizer(models.BPE())
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = before
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator([text[:200] for text in texts], trainer)
        made.save(str(folder / f"{name}.json"))
        found.append(TextTokenizer(folder / f"{name}.json", engine="reference"))
    return found


@given(texts=st.lists(CHARACTERS.map("".join), min_size=1, max_size=3), piece=st.integers(1, 40), eod=st.booleans())
def test_pieces_change_no_id(tokenizers: list[TextTokenizer], texts: list[str], piece: int, eod: bool) -> None:
    for tokenizer in tokenizers:
        for found, wanted in zip(
            encode_texts(tokenizer, texts, eod, piece), tokenizer.encode_flat(texts, eod), strict=True
        ):
            assert np.array_equal(found, wanted)
            assert found.dtype == wanted.dtype


def test_real_text_is_cut_often(harvested: Path, tokenizers: list[TextTokenizer]) -> None:
    text = "".join(row["text"] for path in sorted(harvested.glob("*.train.jsonl")) for row in read_rows(path))
    pieces = list(long_text._pieces(tokenizers[0], text, 1000))
    assert "".join(pieces) == text
    assert len(pieces) > 0.8 * len(text) / 1000
    assert max(map(len, pieces)) < 5000
    for tokenizer in tokenizers:
        assert np.array_equal(encode_texts(tokenizer, [text], True, 1000)[0], tokenizer.encode_flat([text], True)[0])


@pytest.fixture(scope="module")
def words_only(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Blanks become nothing, and one added token is longer than the text that a cut is checked on."""
    vocabulary = {word: i for i, word in enumerate(["a", "word", "of", "[END]"])}
    made = Tokenizer(models.WordLevel(vocabulary, "a"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made.add_special_tokens(["[END]"])
    made.add_tokens(["word of " * 100 + "a"])
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    made.save(str(path))
    return TextTokenizer(path, eod_token="[END]")


@pytest.mark.parametrize("eod", [False, True])
def test_a_long_blank_document_is_treated_as_a_short_one(words_only: TextTokenizer, eod: bool) -> None:
    for size in (10, 2 * long_text.PIECE_CHARACTERS, 2 * long_text.PIECE_CHARACTERS + 1, 10**6):
        texts = ["a", " " * size, "\n" * size, "word", ""]
        tokens, lengths = encode_texts(words_only, texts, eod)
        assert lengths.tolist() == [1 + eod, 0, 0, 1 + eod, 0]
        assert tokens.tolist() == ([0, 3, 1, 3] if eod else [0, 1])


def test_a_token_longer_than_the_context_of_a_cut_stays_whole(words_only: TextTokenizer) -> None:
    text = "of " * 20 + ("word of " * 100 + "a\n") * 9
    found, _ = encode_texts(words_only, [text], True, piece=100)
    assert found.tolist() == words_only.encode_flat([text], True)[0].tolist()


def long_document(megabytes: int) -> str:
    choice = random.Random(megabytes)
    paragraph = " ".join(choice.choice(WORDS).strip() + str(choice.randrange(50)) for _ in range(20_000))
    paragraph += "\n" + "".join(choice.choice("天地玄黄宇宙洪荒日月盈昃辰宿列张，。") for _ in range(20_000)) + "\n"
    return paragraph * (megabytes * 1_000_000 // len(paragraph.encode()) + 1)


# The peak of the process itself: that of resource.getrusage may be the one of the tests that started it.
MEASURED = """
import atexit, re
from data_tools.cli import main
atexit.register(lambda: print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]))
main()
"""


def check_long_document(megabytes: int, most_memory: int, tokenizer_path: Path, folder: Path) -> None:
    text = long_document(megabytes)
    path = write_rows(folder / "in.jsonl", [{"text": "before"}, {"text": text}, {"text": "after"}])
    line: list[str | Path] = ["preprocess", "--input", path, "--workers", "1", "--task-bytes", "3000000"]
    line += ["--output-prefix", folder / "c", "--tokenizer-model", tokenizer_path]
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", MEASURED, *line], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) * 1024 < most_memory
    corpus = IndexedCorpus(folder / "c_text_document")
    assert len(corpus) == 3
    tokenizer = TextTokenizer(tokenizer_path, engine="reference")
    ids = corpus.tokens(1)
    assert ids[-1] == tokenizer.eod_id
    # The paragraph comes again and again, and no token spans its end.
    paragraph = text[: text.index("\n", text.index("\n") + 1) + 1]
    once = tokenizer.encode_flat([paragraph], False)[0]
    assert np.array_equal(ids[:-1], np.tile(once, text.count("\n") // paragraph.count("\n")))


def test_a_document_of_20_megabytes(tokenizer_path: Path, tmp_path: Path) -> None:
    check_long_document(20, 500_000_000, tokenizer_path, tmp_path)


@pytest.mark.slow
def test_a_document_of_200_megabytes(tokenizer_path: Path, tmp_path: Path) -> None:
    check_long_document(200, 2_500_000_000, tokenizer_path, tmp_path)
