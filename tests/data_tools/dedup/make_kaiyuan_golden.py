"""Writes kaiyuan_golden.json: what Kaiyuan-Spark's own functions make of texts.

    PYTHONPATH=. python tests/data_tools/dedup/make_kaiyuan_golden.py CHECKOUT >kaiyuan_golden.json

CHECKOUT: a clone of github.com/thu-pacman/Kaiyuan-Spark at commit 6d4e4dc4573f6fe51d1048ab88febfa6e01663c0. The
committed file is of Python 3.11 and holds characters of Unicode 14 alone: the released code takes its Unicode version
from its Python.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import unicodedata
from pathlib import Path

from benchmarks.dedup_peers import released_bands, released_minhash

ENGLISH = (
    "The committee met on 3 May 2021, at 10.30, to discuss the harbour's budget; it had grown by 4,5 % since the last "
    "session. Nobody was surprised. \tThe chairman — Mr. O'Neill — read the report aloud, twice, and asked whether any "
    "of the members wished to speak.\n\nAfter a long pause the naïve façade of the café was mentioned again."
)
CHINESE = (
    "委员会于2021年5月3日开会，讨论港口的预算。没有人感到惊讶。主席大声朗读了报告，"
    "并问是否有成员想发言；停了很久以后，大家又谈到了咖啡馆。"
)
EDGES = [
    "",
    " \t\n ",
    "one two three four",
    "one two three four five",
    "a b c d e",
    "a  b   c\td\ne",
    "a § b c",
    "© a b c",
    "a b c ©",
    "¿ a b c d e ¿",
    "1 2 3 4 5",
    "1.2.3 4,5,6 7..8 9. .9 1.a 12a34 0.5.",
    "٣٤٫٥ ٣،٤ १२.३ 五 Ⅳ ½ ² ①",
    "１２．３ ４ ５ ６ ７ ８",
    "ΟΔΟΣ ΟΔΟΣ. ΣΑΣ Σ ΑΣ' ΑΣ.Β ΑΣ\u0301 Σ\u0345Σ \u0345Σ ΑΣ\u00ad Α\u00adΣ 1Σ ΣΣΣ ʰΣ Aʰ\u0301Σ",
    "İstanbul IĞDIR ıi İ İ İ İ",
    "ẞ ß ﬁ ŉ ΐ ᾳ ǅ Ω K Å",
    "한국어 문장은 형태소로 나누어진다 그리고 다섯 단어 이상",
    "\u1112\u1161\u11ab 가각 힣 ㄱ ﾡ a",
    "\u0301 a \u0301 b \u0301\u0301 c d \u0301",
    " \u0301 \u0301 a b c d e \u0301 \u0301 ",
    "a \u0301\u0302 b c d e f",
    "हिन्दी में लिखा हुआ एक वाक्य जो पाँच शब्दों से लंबा है",
    "\u09c7\u09be কো কৌ a b c d",
    "สวัสดีครับ นี่คือประโยค ที่มี ช่องว่าง หลาย ที่",
    "a_b c_d e_f g_h",
    "a\u200bb\u200dc\ufeffd e\u2028f\u2029g\u00a0h\u3000i\u1680j\u202fk",
    "a\x1cb\x1dc\x1ed\x1fe\x85f\x0bg\x0ch\x00i\x7fj\x80k",
    "𝟏𝟐 𝐀𝐁 𝔘𝔫𝔦 😀 a 😀😀 b c",
    "𐐀𐐁 𐐨 𞤀𞤢 a b c d",
    "— “quoted” « text » … 《书》 • 【x】 ～ ` ´ ¨ ^ ~ | a",
    "≠ ≮ a ≯ b ∄ c ⫝̸ d",
    "\u2126 \u212a \u212b \u1fef \u037e \u0387 a b c",
    "豈 更 車 賈 滑 串 a b 丽 丸 c",
    "x" * 55 + " b c d e",
    "x" * 47 + " b c d e f " + "y" * 64 + " g h i j " + "z" * 2000 + " k l m n",
    "word " * 400,
    ENGLISH,
    ENGLISH.upper(),
    CHINESE,
    (ENGLISH + " " + CHINESE + " ") * 7,
]


def random_texts(count: int) -> list[str]:
    """Words, numbers, marks and signs of all of Unicode in a mess."""
    source = random.Random(20251209)
    points = [p for p in range(0x110000) if unicodedata.category(chr(p)) not in ("Cn", "Cs", "Co")]
    spaces = " \t\n\u00a0\u2003.,;-1\u0301\u05b0"
    texts = []
    for _ in range(count):
        near = source.choice(points)
        block = [p for p in points if abs(p - near) < 400]
        pool = [points, block, list(map(ord, "ABCabcΣσÅé0123456789")), list(map(ord, spaces))]
        texts.append("".join(chr(source.choice(source.choice(pool))) for _ in range(source.randint(5, 200))))
    return texts


def main(checkout: Path) -> None:
    node, _, _ = released_minhash(checkout)
    bands = released_bands(checkout)
    found = []
    for text in [*EDGES, *random_texts(80)]:
        values = b"".join(band for _, band, _ in bands(text))
        found.append([text, hashlib.sha256(values).hexdigest() if values else None])
    settings = {"bands": int(node.num_bands), "rows": int(node.num_rows_per_band)}
    settings |= {"perm_a": node.perm_a.ravel().tolist(), "perm_b": node.perm_b.ravel().tolist()}
    # One text a line.
    lines = ",\n".join(json.dumps(entry) for entry in found)
    print(f'{{"settings": {json.dumps(settings)},\n"sha256_of_all_bands": [\n{lines}\n]}}')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
