"""What a recipe has to know of the corpora that it is written for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.metadata import metadata_path, open_metadata
from megatron_kaiyuan.data.tokenizer_identity import only_tokenizer, tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """A corpus by its name in the recipe.

    Attributes:
        prefix: of its files, absolute.
        columns: its scores.
        score: the one that documents are to be ranked by.
        tokens: how many it holds; 0 where it does not exist yet.
    """

    name: str
    prefix: Path
    columns: tuple[str, ...] = ()
    score: str = "score"
    tokens: int = 0

    @property
    def has_score(self) -> bool:
        return self.score in self.columns


def open_corpora(words: Sequence[str], score: str) -> list[Corpus]:
    """Corpora named as NAME=PREFIX, each opened.

    Raises:
        UserError: a word has another form, two have one name, or a corpus cannot be read or is empty.
    """
    found: dict[str, Corpus] = {}
    for word in words:
        name, _, text = word.partition("=")
        if not name or not text:
            raise UserError(f"--corpus {word}: write NAME=PREFIX, as web=corpora/web_text_document")
        if name in found:
            raise UserError(f"--corpus {word}: {name!r} is named twice; give each corpus a name of its own")
        found[name] = _open(name, Path(text).absolute(), score)
    if found and not any(one.tokens for one in found.values()):
        raise UserError(f"--corpus {words[0]}: holds no tokens, so there is nothing to train on")
    return list(found.values())


def vocabulary(corpora: Sequence[Corpus]) -> int:
    """Ids of the corpora's tokenizer; 0: it is not known.

    Raises:
        UserError: two corpora have two tokenizers.
    """
    named = [(f"--corpus {one.name}", tokenizer_of_corpus(one.prefix)) for one in corpora]
    found = only_tokenizer(named, "tokenize them with one")
    return 0 if found is None else int(found["vocab_size"])


def _open(name: str, given: Path, score: str) -> Corpus:
    prefix = given.with_suffix("") if given.suffix in (".idx", ".bin") else given
    tokens = int(IndexedCorpus(prefix, check=None).lengths.sum())
    return Corpus(name, prefix, _columns(metadata_path(prefix)), score, tokens)


def _columns(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    with open_metadata(path) as file:
        return tuple(column.name for column in file.schema_arrow if column.type == pa.float64())
