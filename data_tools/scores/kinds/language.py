"""Language identification: the most probable language and its probability."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.scores.fasttext_model import load_model
from data_tools.scores.scorer import MEASURE, WORD, identity_of, measures, texts_of
from megatron_kaiyuan.errors import UserError, require

_PREFIX = "__label__"
# A language and what may follow it: en, zh-min-nan, eng_Latn. No language has the code hq.
_CODE = re.compile(r"(?!hq$)[a-z]{2,3}([-_][A-Za-z0-9]{1,8})*")


@dataclass(frozen=True)
class LanguageScorer:
    """Columns `language` (the model's code, mostly ISO 639-1) and `language_score` (its probability).

    Without `path`, the model that the package py3langid carries (BSD licence, 97 languages; about 1,000 documents/s).
    With `path`, a supervised fastText model whose labels are `__label__CODE`, as lid.176.ftz (CC BY-SA 3.0; 15 times as
    fast, and weaker among related languages).

    Missing: a null text, and one without a letter in the characters that are read.

    Attributes:
        characters: how many are read from the text's start; 0: all.
    """

    version: ClassVar[int] = 1
    path: Path | None = None
    characters: int = 1000
    name: str = "language"

    def __post_init__(self) -> None:
        if self.characters < 0:
            raise UserError(f"scorer language: characters={self.characters} is negative; write a number, or 0 for all")

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return {self.name: WORD, f"{self.name}_score": MEASURE}

    def identity(self) -> dict[str, Any]:
        if self.path is not None:
            return identity_of(self, {"path": self.path})
        _py3langid()
        return {**identity_of(self), "py3langid": importlib.metadata.version("py3langid")}

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        texts = texts_of(batch)
        if self.characters:
            texts = pc.utf8_slice_codeunits(texts, 0, self.characters)
        texts = pc.if_else(pc.match_substring_regex(texts, r"\p{L}"), texts, None)
        codes, scores = _by_py3langid(texts) if self.path is None else _by_fasttext(self.path, texts)
        return {self.name: pa.array(codes, type=WORD), f"{self.name}_score": measures(scores)}


def _by_py3langid(texts: pa.LargeStringArray) -> tuple[list[str | None], list[float | None]]:
    classify = _identifier().classify
    found = [(None, None) if text is None else classify(text) for text in texts.to_pylist()]
    return [code for code, _ in found], [score for _, score in found]


def _by_fasttext(path: Path, texts: pa.LargeStringArray) -> tuple[list[str | None], np.ndarray]:
    model = load_model(path)
    _require_codes(path, model.labels)
    probabilities = model.probabilities(texts)
    is_missing = np.isnan(probabilities[:, 0])
    best = np.where(is_missing, 0, np.argmax(probabilities, axis=1))
    codes = [label.removeprefix(_PREFIX) for label in model.labels]
    return (
        [None if missing else codes[index] for missing, index in zip(is_missing, best, strict=True)],
        probabilities[np.arange(len(texts)), best],
    )


def _require_codes(path: Path, labels: Sequence[str]) -> None:
    """Refuse a classifier of something else: half of its labels or more are no codes of languages.

    Raises:
        UserError: naming some labels.
    """
    codes = sum(_CODE.fullmatch(label.removeprefix(_PREFIX)) is not None for label in labels)
    if 2 * codes <= len(labels):
        shown = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
        raise UserError(f"{path}: tells no languages apart, its labels are {shown}; use it as --scorer linear={path}")


def _py3langid() -> Any:
    return require("py3langid.langid", extra="scores", purpose="language identification without a model's path")


@functools.cache
def _identifier() -> Any:
    library = _py3langid()
    return library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True)


SCORER = LanguageScorer
