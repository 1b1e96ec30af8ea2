"""What a recipe has to know of the corpora that it is written for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from megatron_kaiyuan.data.indexed import IndexedCorpus, bin_path
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


def open_corpora(words: Sequence[str], score: str, option: str = "--corpus") -> list[Corpus]:
    """Open corpora that are named as NAME=PREFIX.

    Args:
        option: that names them.

    Raises:
        UserError: a word has another form, two have one name, or a corpus cannot be read or is empty.
    """
    found: dict[str, Corpus] = {}
    for word in words:
        name, _, text = word.partition("=")
        if not name or not text:
            raise UserError(f"{option} {word}: write NAME=PREFIX, as web=corpora/web_text_document")
        if name in found:
            raise UserError(f"{option} {word}: {name!r} is named twice; give each corpus a name of its own")
        found[name] = _open(name, Path(text).absolute(), score)
    if found and not any(one.tokens for one in found.values()):
        raise UserError(f"{option} {words[0]}: holds no tokens; name a larger corpus")
    return list(found.values())


def vocabulary(corpora: Sequence[Corpus], held_out: Sequence[Corpus]) -> int:
    """Return how many ids the corpora's tokenizer has; 0: it is not known.

    Raises:
        UserError: two corpora have two tokenizers.
    """
    options = [("--corpus", corpora), ("--held-out", held_out)]
    named = [(f"{option} {one.name}", tokenizer_of_corpus(one.prefix)) for option, found in options for one in found]
    found = only_tokenizer(named, "tokenize them with one")
    return 0 if found is None else int(found["vocab_size"])


def check_apart(corpora: Sequence[Corpus], held_out: Sequence[Corpus]) -> None:
    """Refuse a held-out corpus that is trained on.

    Raises:
        UserError: the two have a file in common.
    """
    trained = {bin_path(one.prefix).resolve(): one.name for one in corpora}
    for one in held_out:
        if (name := trained.get(bin_path(one.prefix).resolve())) is not None:
            raise UserError(
                f"--held-out {one.name}: is --corpus {name} too, so its loss would not be held out; name another"
            )


def _open(name: str, given: Path, score: str) -> Corpus:
    prefix = given.with_suffix("") if given.suffix in (".idx", ".bin") else given
    tokens = int(IndexedCorpus(prefix, check=None).lengths.sum())
    return Corpus(name, prefix, _columns(metadata_path(prefix)), score, tokens)


def _columns(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    with open_metadata(path) as file:
        return tuple(column.name for column in file.schema_arrow if column.type == pa.float64())
