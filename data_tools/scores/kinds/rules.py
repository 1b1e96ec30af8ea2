"""Rules of thumb of C4, Gopher and FineWeb: measures, a verdict for each family, and the first rule that fails.

What is measured is defined in csrc/scores/rules.h. Sources of the thresholds:

- c4: Raffel et al. 2020 (JMLR 21:140), section 2.2. Lines are kept that end in a mark of the end of a sentence, have at
  least 5 words and do not mention Javascript; with the released code's limits: no word over 1,000 characters, none of
  the phrases of privacy notices. A page with fewer than 3 sentences in such lines, with "lorem ipsum" or with a curly
  bracket is dropped. Its list of bad words is not applied.
- gopher: Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1, "Quality filtering".
- repetition: the same, table A1, with the thresholds of each measure.
- fineweb: Penedo et al. 2024 (arXiv 2406.17557), "Developing additional heuristic filters". (The released code
  cuts at 0.01 repeated characters where the paper says 0.1, and adds a rule on line feeds a word.)

A document is scored, not changed: C4's removal of lines counts here, and does not happen.
"""

from __future__ import annotations

import functools
import operator
import sys
import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools import _scores
from data_tools.scores.scorer import MEASURE, WORD, identity_of, measures, text_memory, texts_of
from megatron_kaiyuan.errors import UserError

_OPERATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


class Rule(NamedTuple):
    """A document is kept when `measure` `operation` `threshold` holds."""

    measure: str
    operation: str
    threshold: float


# By family, in the order in which they are tried.
RULES: dict[str, tuple[Rule, ...]] = {
    "c4": (
        Rule("c4_curly_brackets", "<=", 0),
        Rule("c4_lorem_ipsum", "<=", 0),
        Rule("c4_sentences", ">=", 3),
    ),
    "gopher": (
        Rule("gopher_words", ">=", 50),
        Rule("gopher_words", "<=", 100_000),
        Rule("gopher_mean_word_length", ">=", 3),
        Rule("gopher_mean_word_length", "<=", 10),
        Rule("gopher_hashes_per_word", "<=", 0.1),
        Rule("gopher_ellipses_per_word", "<=", 0.1),
        Rule("gopher_bullet_lines", "<=", 0.9),
        Rule("gopher_ellipsis_lines", "<=", 0.3),
        Rule("gopher_alphabetic_words", ">=", 0.8),
        Rule("gopher_stop_words", ">=", 2),
    ),
    "repetition": (
        Rule("repetition_lines", "<=", 0.3),
        Rule("repetition_paragraphs", "<=", 0.3),
        Rule("repetition_line_characters", "<=", 0.2),
        Rule("repetition_paragraph_characters", "<=", 0.2),
        Rule("repetition_top_2_gram", "<=", 0.2),
        Rule("repetition_top_3_gram", "<=", 0.18),
        Rule("repetition_top_4_gram", "<=", 0.16),
        *(Rule(f"repetition_{length}_grams", "<=", round(0.2 - length / 100, 2)) for length in range(5, 11)),
    ),
    "fineweb": (
        Rule("fineweb_ended_lines", ">", 0.12),
        Rule("fineweb_repeated_characters", "<", 0.1),
        Rule("fineweb_short_lines", "<", 0.67),
    ),
}
_EVERY_FAMILY = "+".join(RULES)


@dataclass(frozen=True)
class RulesScorer:
    """Columns NAME_FAMILY (1.0 kept, 0.0 dropped), NAME_reason (the first rule that fails, or null) and NAME_MEASURE.

    Words are what white space separates: text without it (Chinese, Japanese, Thai) fails `gopher` and most of `c4`.

    Missing: a null text.

    Attributes:
        families: joined by +; their verdicts and reasons count. The measures of all are given.
    """

    version: ClassVar[int] = 1
    families: str = _EVERY_FAMILY
    name: str = "rules"

    def __post_init__(self) -> None:
        if unknown := [family for family in self._families if family not in RULES]:
            raise UserError(f"scorer rules: unknown family {unknown[0]!r}; join some of {_EVERY_FAMILY} by +")

    @property
    def _families(self) -> list[str]:
        return self.families.split("+")

    @property
    def columns(self) -> dict[str, pa.DataType]:
        verdicts = {f"{self.name}_{family}": MEASURE for family in self._families}
        measured = {f"{self.name}_{measure}": MEASURE for measure in _scores.RULE_MEASURES}
        return {**verdicts, f"{self.name}_reason": WORD, **measured}

    def identity(self) -> dict[str, Any]:
        return {**identity_of(self), "unicode": unicodedata.unidata_version}

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        texts = texts_of(batch)
        values = _scores.rule_measures(_character_classes(), *text_memory(texts))
        if texts.null_count:
            values[np.asarray(texts.is_null())] = np.nan
        by_measure = dict(zip(_scores.RULE_MEASURES, values.T, strict=True))
        is_missing = np.isnan(by_measure["characters"])
        columns: dict[str, pa.Array] = {}
        reasons: NDArray[np.object_] = np.full(len(texts), None, dtype=object)
        for family in self._families:
            failed: NDArray[np.bool_] = np.zeros(len(texts), dtype=bool)
            for rule in RULES[family]:
                fails = ~_OPERATIONS[rule.operation](by_measure[rule.measure], rule.threshold) & ~is_missing
                reasons[fails & (reasons == None)] = f"{rule.measure} {rule.operation} {rule.threshold:g}"  # noqa: E711
                failed |= fails
            columns[f"{self.name}_{family}"] = measures(np.where(is_missing, np.nan, 1.0 - failed))
        columns[f"{self.name}_reason"] = pa.array(reasons, type=WORD)
        return columns | {f"{self.name}_{measure}": measures(column) for measure, column in by_measure.items()}


@functools.cache
def _character_classes() -> bytes:
    """A byte for each code point, see CharacterClass in csrc/scores/rules.h."""
    classes: NDArray[np.uint8] = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for point in range(sys.maxunicode + 1):
        category = unicodedata.category(character := chr(point))
        if category[0] == "L":
            classes[point] = _scores.LETTER
        elif category[0] in "PS":
            classes[point] = _scores.PUNCTUATION
        elif character.isspace():
            classes[point] = _scores.SPACE
    return classes.tobytes()


SCORER = RulesScorer
