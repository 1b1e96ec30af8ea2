"""`preprocess --held-out`: which documents are held out, and that nothing of the rest changes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data_tools.engines.local import LocalEngine
from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows


def texts(prefix: Path, tokenizer: TextTokenizer) -> list[str]:
    corpus = IndexedCorpus(prefix)
    return [tokenizer.decode(corpus.tokens(i).tolist()[:-1]) for i in range(len(corpus))]


def test_a_share_is_held_out_whatever_the_order_and_the_workers(tmp_path: Path, tokenizer_path: Path) -> None:
    rows = [{"text": f"document {number}", "other": f"other {number}", "score": number} for number in range(2000)]
    rows += rows[:300]  # equal texts lie on one side
    tokenizer = TextTokenizer(tokenizer_path)
    settings = Settings(tokenizer_path, ("text", "other"), ("score",), held_out=0.1)
    found = []
    for name, workers in (("a", 1), ("b", 2)):
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        totals = preprocess([path], tmp_path / name / "x", settings, LocalEngine(workers), task_bytes=20_000)
        assert totals.sequences == 2 * len(rows)
        kept, out = (texts(tmp_path / name / f"x{split}_text_document", tokenizer) for split in ("", ".heldout"))
        others = texts(tmp_path / name / "x.heldout_other_document", tokenizer)
        assert others == [text.replace("document", "other") for text in out]
        tokens = IndexedCorpus(tmp_path / name / "x.heldout_text_document").num_tokens
        tokens += IndexedCorpus(tmp_path / name / "x.heldout_other_document").num_tokens
        assert (totals.held_out, totals.held_out_tokens) == (2 * len(out), tokens)
        assert f"of these held out: {2 * len(out):,} documents, {tokens:,} tokens" in str(totals)
        found.append((kept, out))
        random.Random(3).shuffle(rows)
    kept, out = found[0]
    assert len(kept) + len(out) == 2300 and not set(kept) & set(out)
    # Of 2,000 different texts a tenth, within five standard deviations.
    assert abs(len(set(out)) - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert [sorted(side) for side in found[1]] == [sorted(side) for side in found[0]]
    # A larger share holds the smaller one.
    preprocess([tmp_path / "a.jsonl"], tmp_path / "c" / "x", Settings(tokenizer_path, held_out=0.3))
    assert set(out) < set(texts(tmp_path / "c" / "x.heldout_text_document", tokenizer))


def test_without_it_a_corpus_is_the_same_as_before(tmp_path: Path, tokenizer_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"document {number}"} for number in range(9)])
    preprocess([path], tmp_path / "x", Settings(tokenizer_path))
    assert sorted(file.name for file in tmp_path.glob("x*") if "heldout" in file.name) == []


@pytest.mark.parametrize(
    ("share", "message"),
    [(1.0, "must be at least 0 and below 1"), (-0.1, "must be"), (1e-9, "holds out 0 of 1 documents")],
)
def test_a_share_that_divides_nothing_is_refused(
    tmp_path: Path, tokenizer_path: Path, share: float, message: str
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "one"}])
    with pytest.raises(UserError, match=message):
        preprocess([path], tmp_path / "x", Settings(tokenizer_path, held_out=share))
