"""Which tokenizer made some ids, as corpus manifests record it, and whether two things belong to one tokenizer.

The identity goes the whole way: corpus manifest, phase manifest, checkpoint, export, evaluation. Corpora without a
manifest (Megatron's own pairs) and artefacts of before have none; they are compared with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, read_json
from megatron_kaiyuan.forms import Count, Form, require_form

# What a corpus manifest says of its tokenizer, without the folder: it decides which id stands for what.
Tokenizer = Mapping[str, Any]
_DECIDE = ("fingerprint", "vocab_size", "eod_id")
# Files whose fingerprint is their own checksum. A tiktoken file's covers the pattern and the special tokens too.
_FILES = ("tokenizer.json", "tokenizer.model")


class TokenizerForm(Form):
    """A `Tokenizer` in a file."""

    file: str = ""
    fingerprint: str
    vocab_size: Annotated[int, Field(ge=1, le=1 << 31)]
    eod_id: Count


def tokenizer_of_corpus(prefix: Path) -> Tokenizer | None:
    """The tokenizer that a corpus manifest names: `file`, `fingerprint`, `vocab_size`, `eod_id`; None: unknown.

    Raises:
        UserError: the manifest is damaged.
    """
    path = prefix.with_name(f"{prefix.name}.manifest.json")
    manifest = read_json(path, "corpus manifest") if path.is_file() else None
    recorded = manifest.get("tokenizer") if isinstance(manifest, dict) else None
    if not isinstance(recorded, dict) or not all(name in recorded for name in _DECIDE):
        return None
    found = {"file": Path(str(recorded.get("path", ""))).name, **{name: recorded[name] for name in _DECIDE}}
    require_form(path, found, TokenizerForm, "make the corpus again, or copy it again from where it came")
    return found


def only_tokenizer(named: Sequence[tuple[str, Tokenizer | None]], remedy: str) -> Tokenizer | None:
    """The tokenizer of all things whose tokenizer is known; None: of none of them.

    Args:
        named: what to call each thing in the message, and its tokenizer.
        remedy: the end of the message.

    Raises:
        UserError: two things have two tokenizers; the message names both.
    """
    known = [(name, tokenizer) for name, tokenizer in named if tokenizer is not None]
    for name, tokenizer in known[1:]:
        first_name, first = known[0]
        if different := difference(first, tokenizer):
            raise UserError(f"{name} was made by another tokenizer than {first_name} ({different}); {remedy}")
    return known[0][1] if known else None


def difference(first: Tokenizer | None, second: Tokenizer | None) -> str | None:
    """The first thing in which two tokenizers differ, in words; None: in nothing, or one is unknown."""
    if first is None or second is None:
        return None
    return next((f"{name} {second[name]}, not {first[name]}" for name in _DECIDE if first[name] != second[name]), None)


def compare_folder(tokenizer: Tokenizer, folder: Path) -> Literal["same", "other", "unknown"]:
    """Whether a folder's tokenizer is the one; unknown: it holds another form of a tokenizer than the one's file."""
    found = {name: checksum(folder / name) for name in _FILES if (folder / name).is_file()}
    if tokenizer["fingerprint"] in found.values():
        return "same"
    comparable = {".json": "tokenizer.json", ".model": "tokenizer.model"}.get(Path(tokenizer["file"]).suffix)
    return "other" if comparable in found else "unknown"
