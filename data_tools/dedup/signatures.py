"""What a document's shingles and signature are: the recipe, and the C++ that follows it.

A text is normalised and cut into words; its shingles are the n-grams of its words; its signature holds, for each of
many permutations of hashes, the least hash of its shingles. Two documents agree in a share of their signatures that
estimates the Jaccard index J of their shingles, with a standard deviation of sqrt(J (1 - J) / permutations) (Broder,
1997). Signatures are cut into bands; documents that agree in a whole band are candidates, which is so with probability
1 - (1 - J^rows)^bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools._dedup import KaiyuanSigner, Signer
from megatron_kaiyuan.errors import UserError, require_between

_MERSENNE = 2**61 - 1
# Least and largest value of each number. More permutations than these take more than 64 KB a document.
_MOST_PERMUTATIONS = 2**14
_RANGES = (
    ("ngram", 1, 1000),
    ("permutations", 1, _MOST_PERMUTATIONS),
    ("bands", 1, _MOST_PERMUTATIONS),
    ("rows", 1, _MOST_PERMUTATIONS),
    ("threshold", 0.001, 1),
    ("seed", 0, 2**32 - 1),
)


@dataclass(frozen=True)
class Recipe:
    """How documents are compared. Two runs with equal recipes and versions have the same bits.

    Attributes:
        preset: "default": case folded, marks dropped, punctuation to space, by Unicode 14; 32-bit permutations.
            "kaiyuan": the released pipeline's normalisation, SHA-1 and 64-bit arithmetic, bit for bit.
        shingles: "auto": words, and single letters in scripts without spaces between words (Han, kana, Hangul, Thai,
            Lao, Khmer, Myanmar). "words": letters of those are joined like others. "characters": each letter is a word.
        numbers: "space": digits are not part of shingles, so that a counter or a date makes no difference. "keep":
            they are letters; for tables, arithmetic and code. The digest of exact duplicates has them in any case.
        ngram: words of a shingle. A shorter text is one shingle (kaiyuan: below five words it has none).
        permutations: numbers of a signature.
        bands, rows: candidates share the `rows` numbers of at least one band.
        threshold: near-duplicates have at least this Jaccard index.
        verify: candidates are checked by their exact Jaccard index.
        seed: of the permutations.
    """

    VERSION: ClassVar[int] = 1  # raised when a recipe gives other bits than before

    preset: Literal["default", "kaiyuan"] = "default"
    shingles: Literal["auto", "words", "characters"] = "auto"
    numbers: Literal["space", "keep"] = "space"
    ngram: int = 5
    permutations: int = 128
    bands: int = 21
    rows: int = 6
    threshold: float = 0.7
    verify: bool = True
    seed: int = 1234

    def __post_init__(self) -> None:
        self._require(self.preset in ("default", "kaiyuan"), "preset", "default or kaiyuan")
        self._require(self.shingles in ("auto", "words", "characters"), "shingles", "auto, words or characters")
        self._require(self.numbers in ("space", "keep"), "numbers", "space or keep")
        for name, least, most in _RANGES:
            require_between(f"--{name}", getattr(self, name), least, most)
        if self.permutations < self.bands * self.rows:
            raise UserError(
                f"--permutations {self.permutations}: must be at least --bands x --rows, which is "
                f"{self.bands * self.rows:,}"
            )
        if self.preset == "kaiyuan":
            self._require(self.shingles == "words", "shingles", "words with the preset kaiyuan")
            self._require(self.numbers == "space", "numbers", "space with the preset kaiyuan")

    def _require(self, holds: bool, field: str, wanted: str) -> None:
        if not holds:
            raise UserError(f"--{field} {getattr(self, field)}: must be {wanted}")

    def signer(self) -> Signer | KaiyuanSigner:
        """What signs texts by this recipe; it may be kept and shared by threads."""
        # RandomState: NumPy guarantees its stream for all versions. The released pipeline draws from it in this order.
        generator = np.random.RandomState(self.seed)
        if self.preset == "kaiyuan":
            a, b = (generator.randint(1, _MERSENNE, self.permutations, dtype=np.uint64) for _ in range(2))
            return KaiyuanSigner(a, b, self.ngram)
        multipliers, increments = (generator.randint(0, 2**32, self.permutations, dtype=np.uint32) for _ in range(2))
        # Odd multipliers: x -> a x + b modulo 2^32 is a permutation.
        return Signer(multipliers | 1, increments, self.ngram, self.shingles, self.numbers == "keep")


def kaiyuan_preset() -> Recipe:
    """The report's: 14 x 9 bands, which are 126 of the 128 permutations asked for, and no check of candidates.

    The released code's mode for English, which is its default. For Chinese it can cut words with jieba first; this does
    not: a run of Chinese between two signs is one word here, as it is in the released default.
    """
    return Recipe(preset="kaiyuan", shingles="words", permutations=126, bands=14, rows=9, verify=False)


def text_memory(texts: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Offsets [texts + 1] and bytes of strings, as the C++ takes them; a null is an empty text.

    Large strings without nulls in one chunk are not copied.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks() if texts.num_chunks != 1 else texts.chunk(0)
    texts = pc.fill_null(texts.cast(pa.large_string()), "") if texts.null_count else texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    if len(texts) == 0:
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    numbers = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return numbers, np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
