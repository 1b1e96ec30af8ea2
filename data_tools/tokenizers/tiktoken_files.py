"""tiktoken rank files. Such a file holds base64 tokens and their ranks, and nothing else.

The pattern that cuts text into pieces and the special tokens come from a JSON file beside it, `x.tiktoken.json` for
`x.tiktoken`: `{"pattern": a regular expression or the name of a known encoding, "special_tokens": {token: id},
"eod_token": token}`. Without one, a file that bears the name of a known encoding has that encoding's.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json

RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_END = "<|endoftext|>"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class KnownEncoding:
    """What the code that publishes an encoding says, and its rank file does not."""

    pattern: str
    special_tokens: dict[str, int]


KNOWN = {
    "r50k_base": KnownEncoding(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", {_END: 50256}
    ),
    "cl100k_base": KnownEncoding(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        {
            _END: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": KnownEncoding(
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
        {_END: 199999, "<|endofprompt|>": 200018},
    ),
    # Qwen 1 to 3; later ones add more special tokens, which a JSON file beside the ranks can name.
    "qwen": KnownEncoding(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
        {_END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
    ),
}


@dataclass(frozen=True)
class TiktokenFile:
    """A rank file and what belongs to it.

    Attributes:
        ranks: token bytes to id.
        end: the token that the JSON file names as the end of a document; None for none.
    """

    ranks: dict[bytes, int]
    pattern: str
    special_tokens: dict[str, int]
    end: str | None


def read_tiktoken(path: Path) -> TiktokenFile:
    """Read a rank file, and the JSON file beside it where there is one.

    Raises:
        UserError: a line is wrong, the JSON file is, or nothing says which pattern the file needs.
    """
    beside = path.with_name(f"{path.name}.json")
    if beside.exists():
        return _described(path, beside)
    known = KNOWN.get(path.stem)
    if known is None:
        raise UserError(
            f"{path}: nothing says how text is cut into pieces; write {beside.name} beside it: "
            '{"pattern": "cl100k_base" or a regular expression, "special_tokens": {"<|endoftext|>": id}}'
        )
    return TiktokenFile(_ranks(path), known.pattern, known.special_tokens, None)


def _described(path: Path, beside: Path) -> TiktokenFile:
    content = read_json(beside, "description of a tiktoken file")
    pattern = content.get("pattern") if isinstance(content, dict) else None
    if not isinstance(pattern, str):
        raise UserError(f"{beside}: needs a 'pattern': a regular expression, or one of {', '.join(KNOWN)}")
    known = KNOWN.get(pattern)
    special = content.get("special_tokens", known.special_tokens if known else {})
    if not isinstance(special, dict) or not all(_is_id(token) for token in special.values()):
        raise UserError(f"{beside}: 'special_tokens' must name the id of each token")
    ranks = _ranks(path)
    taken = set(ranks.values()) & set(special.values())
    if taken:
        raise UserError(f"{beside}: id {min(taken)} of 'special_tokens' is a rank of {path.name}; give unused ids")
    end = content.get("eod_token")
    if end is not None and not isinstance(end, str):
        raise UserError(f"{beside}: 'eod_token' must be one of the special tokens")
    return TiktokenFile(ranks, known.pattern if known else pattern, special, end)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error):
                raise UserError(f"{path}:{number}: not a base64 token and its rank; copy the file again") from None
    _check_ranks(path, ranks)
    return ranks


def _check_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    """Refuse what makes the library panic."""
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"{path}: has no token for {len(lacking)} bytes, such as {lacking[0]}; copy it again")
    if len(set(ranks.values())) < len(ranks) or not all(0 <= rank < 1 << 31 for rank in ranks.values()):
        raise UserError(f"{path}: two tokens have one rank, or a rank is not from 0 to 2^31 - 1; copy it again")
