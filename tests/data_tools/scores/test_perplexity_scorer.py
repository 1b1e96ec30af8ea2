"""Perplexity against a reading of the ARPA file in plain Python."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece

from data_tools.scores.parse import parse_scorer
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.real_texts import batch_of, real_texts

Table = dict[tuple[str, ...], tuple[float, float]]


def write_arpa(path: Path, words: list[str], seed: int = 0) -> Table:
    """A bigram model of random numbers: (log10 p, log10 backoff) by n-gram."""
    drawn = random.Random(seed)
    number = lambda low: round(drawn.uniform(low, -0.1), 4)  # noqa: E731
    table: Table = {("<unk>",): (-5.0, 0.0), ("<s>",): (-99.0, number(-1)), ("</s>",): (number(-3), 0.0)}
    table |= {(word,): (number(-4), number(-1)) for word in words}
    firsts = ["<s>", *words]
    table |= {(drawn.choice(firsts), word): (number(-2), 0.0) for word in [*words, "</s>"] for _ in range(3)}
    lines = ["\\data\\"]
    for length in (1, 2):
        lines.append(f"ngram {length}={sum(len(gram) == length for gram in table)}")
    for length in (1, 2):
        lines += ["", f"\\{length}-grams:"]
        for gram, (log10, backoff) in table.items():
            if len(gram) == length:
                lines.append(f"{log10}\t{' '.join(gram)}" + (f"\t{backoff}" if length == 1 else ""))
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
    return table


def plain_perplexity(table: Table, lines: list[list[str]]) -> float | None:
    total, tokens = 0.0, 0
    for words in lines:
        if not words:
            continue
        before = "<s>"
        for word in [*words, "</s>"]:
            word = word if (word,) in table else "<unk>"
            if (before, word) in table:
                total += table[before, word][0]
            else:
                total += table[before,][1] + table[word,][0]
            before = word
            tokens += 1
    return 10 ** (-total / tokens) if tokens else None


def test_perplexity_is_that_of_the_table(tmp_path: Path) -> None:
    texts = list(real_texts(40))
    words = sorted({word for text in texts for word in text.encode().decode().split() if word.isascii()})[:800]
    table = write_arpa(tmp_path / "model.arpa", words)
    scorer = parse_scorer(f"perplexity={tmp_path / 'model.arpa'}")
    scores = scorer.score(batch_of([*texts, None]))["perplexity"].to_pylist()
    for text, score in zip(texts, scores, strict=False):
        lines = [
            [word.decode() for word in line.replace("\0", " ").encode().split()] for line in text.split("\n")
        ]  # ASCII white space
        expected = plain_perplexity(table, lines)
        assert score == (None if expected is None else pytest.approx(expected, rel=1e-4)), text[:50]
    assert scores[-1] is None and scores[0] is None and scores[1] is None


def test_pieces_of_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(line for text in real_texts(30)[16:] for line in text.split("\n")))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "pieces"), vocab_size=300, minloglevel=3,
        character_coverage=1.0, hard_vocab_limit=False,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    known = [processor.id_to_piece(index) for index in range(3, processor.get_piece_size())]
    table = write_arpa(tmp_path / "model.arpa", known)
    text = real_texts(30)[20]
    scorer = parse_scorer(f"perplexity={tmp_path / 'model.arpa'},pieces={tmp_path / 'pieces.model'},name=p")
    expected = plain_perplexity(table, [processor.encode(line, out_type=str) for line in text.split("\n")])
    assert scorer.score(batch_of([text]))["p"][0].as_py() == pytest.approx(expected, rel=1e-4)
    assert set(scorer.identity()["files"]) == {"path", "pieces"}


def test_a_wrong_model_is_one_line(tmp_path: Path) -> None:
    write_arpa(tmp_path / "model.arpa", ["a", "b"])
    raw = (tmp_path / "model.arpa").read_bytes()
    bad = {
        "empty": b"",
        "cut": raw[: len(raw) // 2],
        "noise": random.Random(0).randbytes(3000),
        "text": b"hello\n" * 99,
        "mmap": b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(3000),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    for name in [*bad, "absent"]:
        with pytest.raises(UserError) as caught:
            parse_scorer(f"perplexity={tmp_path / name}").score(batch_of([]))
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value), name
    (tmp_path / "documents.jsonl").write_text(f'{{"text": "{"word " * 5000}"}}\n')
    with pytest.raises(UserError, match=r"first non-empty line was .*not .data") as caught:
        parse_scorer(f"perplexity={tmp_path / 'documents.jsonl'}").score(batch_of([]))
    assert len(str(caught.value)) < 250 + len(str(tmp_path))
    for name in ("noise", "absent"):
        with pytest.raises(UserError, match="not a sentencepiece model"):
            parse_scorer(f"perplexity={tmp_path / 'model.arpa'},pieces={tmp_path / name}").score(batch_of(["a"]))


def test_nothing_overflows(tmp_path: Path) -> None:
    unigrams = "-999\t<unk>\n-99\t<s>\t0\n-999\t</s>\n-1\ta\t0\n"
    text = f"\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n{unigrams}\n\\2-grams:\n-1\t<s> a\n\n\\end\\\n"
    (tmp_path / "m.arpa").write_text(text)
    scores = parse_scorer(f"perplexity={tmp_path / 'm.arpa'}").score(batch_of(["x y"]))["perplexity"]
    assert scores.to_pylist() == [1e300]
