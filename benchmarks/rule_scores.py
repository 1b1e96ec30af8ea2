"""Verdicts and speed of the scorer `rules` beside datatrove's filters, on the same documents, in one run.

In a virtual environment of its own, for datatrove's filters want spaCy and NLTK:

    pip install -e . datatrove spacy nltk
    python -m benchmarks.rule_scores
    python -m benchmarks.rule_scores --documents 5000 --alone     # without datatrove

Documents are those of `benchmarks/linear_scores.py`: half text, half source. For each family: the share of equal
verdicts, and the pairs of reasons where they differ. Why they do is known (datatrove 0.10):

- gopher: it counts punctuation marks as words, as its tokenizer parts them, so that ordinary prose has 12 % of words
  without a letter, and source more. Here, as the paper is read, a mark is no word.
- repetition: its n-grams are of its tokens, among them marks, ours of what white space separates; its lines and
  paragraphs are compared with their indentation, ours without.
- fineweb: its limit of repeated characters is 0.01 where the paper says 0.1; it has a rule on line feeds a word that
  the paper lacks; quotation marks do not end a line for it.
- c4: a curly bracket counts for it only in lines that pass the other tests, and only an opening one; it asks for 5
  sentences in lines of 3 words, where the released code of C4 asks for 3 and 5.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.linear_scores import documents
from data_tools.scores.kinds.rules import RULES
from data_tools.scores.parse import parse_scorer
from megatron_kaiyuan.errors import UserError

GOAL = 2000.0  # documents a second


def ours(texts: list[str], rounds: int) -> tuple[dict[str, tuple[list[bool], list[str | None]]], float]:
    """Verdicts and reasons by family, and documents a second with all families."""
    import pyarrow as pa

    batch = pa.RecordBatch.from_pydict({"text": pa.array(texts, type=pa.large_string())})
    found = {}
    for family in RULES:
        scores = parse_scorer(f"rules,families={family}").score(batch)
        kept = [verdict == 1.0 for verdict in scores[f"rules_{family}"].to_pylist()]
        found[family] = (kept, scores["rules_reason"].to_pylist())
    scorer, seconds = parse_scorer("rules"), []
    for _ in range(rounds):
        started = time.process_time()
        scorer.score(batch)
        seconds.append(time.process_time() - started)
    return found, len(texts) / statistics.median(seconds)


def theirs(texts: list[str]) -> dict[str, tuple[list[bool], list[str], float]]:
    """Verdicts, reasons and documents a second of each of datatrove's filters."""
    try:
        from datatrove.data import Document  # type: ignore[import-not-found]
        from datatrove.pipeline import filters  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(f"datatrove cannot be imported ({error}): see the top of benchmarks/rule_scores.py") from error
    classes: dict[str, Any] = {
        "c4": filters.C4QualityFilter,
        "gopher": filters.GopherQualityFilter,
        "repetition": filters.GopherRepetitionFilter,
        "fineweb": filters.FineWebQualityFilter,
    }
    found = {}
    for family, cls in classes.items():
        judge = cls()
        judge.filter(Document(text=texts[0], id=""))  # loads its tokenizer
        kept, reasons, started = [], [], time.process_time()
        for text in texts:
            verdict = judge.filter(Document(text=text, id=""))
            kept.append(verdict is True)
            reasons.append(verdict[1] if isinstance(verdict, tuple) else "")
        found[family] = (kept, reasons, len(texts) / (time.process_time() - started))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without datatrove")
    arguments = parser.parse_args()
    half = arguments.documents // 2
    pool = list(documents(20 * arguments.documents))
    chosen = [document for kind in (True, False) for document in [d for d in pool if d[1] == kind][:half]]
    texts = [text for text, _ in chosen]
    found, rate = ours(texts, arguments.rounds)
    size = sum(len(text.encode()) for text in texts) / len(texts)
    print(f"{len(texts):,} documents, mean {size:,.0f} bytes: ours, all families {rate:,.0f} documents/s a core")
    if arguments.alone:
        return 0 if rate >= GOAL else 1
    for family, (kept, reasons, peer_rate) in theirs(texts).items():
        print(f"{family}: datatrove {peer_rate:,.0f} documents/s")
        for kind, name in ((True, "text"), (False, "source")):
            rows = [row for row, (_, is_text) in enumerate(chosen) if is_text == kind]
            pairs = [(found[family][0][row], kept[row]) for row in rows]
            equal = sum(a == b for a, b in pairs) / max(len(pairs), 1)
            print(
                f"  {name:7} {len(rows)} documents: {100 * equal:.1f} % equal; kept by ours alone "
                f"{pairs.count((True, False))}, by datatrove alone {pairs.count((False, True))}"
            )
            differ = Counter(
                (found[family][1][row] or "kept", reasons[row] or "kept")
                for row in rows
                if found[family][0][row] != kept[row]
            )
            for (our_reason, their_reason), count in differ.most_common(4):
                print(f"    {count:4} ours: {our_reason:36} datatrove: {their_reason}")
    return 0 if rate >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
