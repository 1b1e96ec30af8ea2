"""Held-out corpora beside a token stream: opened, and compared with what is trained on. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from megatron_kaiyuan.data.indexed import IndexedCorpus, bin_path
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.data.tokenizer_identity import only_tokenizer, tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError

# Tokens that are looked at together.
_BLOCK = 1 << 22


def open_held_out(prefixes: Mapping[str, Path], stream: TokenStream) -> dict[str, IndexedCorpus]:
    """Open the corpora of `validation.corpora`, by name.

    Raises:
        UserError: one is missing or damaged, has no token to predict, is of another tokenizer than the stream, or holds
            ids that are not below the stream's vocabulary size.
    """
    found = {}
    for name, given in prefixes.items():
        prefix = given.with_suffix("") if given.suffix == ".idx" else given
        try:
            found[name] = IndexedCorpus(prefix)
        except UserError as error:
            raise UserError(f"validation.corpora.{name}: {error}") from error
        if found[name].num_tokens < 2:
            raise UserError(f"validation.corpora.{name}: {prefix} has no token to predict; name a larger corpus")
        _check_ids(name, found[name], stream.vocab_size)
    tokenizers = [(f"validation.corpora.{name}", tokenizer_of_corpus(one.prefix)) for name, one in found.items()]
    only_tokenizer([("data.phases", stream.tokenizer), *tokenizers], "validate with the tokenizer that is trained on")
    return found


def trained_on(held_out: Mapping[str, IndexedCorpus], stream: TokenStream) -> Iterator[str]:
    """A warning for each held-out corpus that a phase trains on."""
    phases = {_file(corpus): phase.name for phase in reversed(stream.phases) for corpus in phase.corpora}
    for name, corpus in held_out.items():
        if (phase := phases.get(_file(corpus))) is not None:
            yield f"validation.corpora.{name}: {corpus.prefix} is trained on in phase {phase}: its loss is not held out"


def _check_ids(name: str, corpus: IndexedCorpus, vocab_size: int) -> None:
    """Read the token file through: an id that one rank alone meets would leave the others waiting for it."""
    tokens = corpus.token_bytes.view(corpus.dtype)
    blocks = [tokens[at : at + _BLOCK] for at in range(0, len(tokens), _BLOCK)]
    least, largest = min(int(np.min(one)) for one in blocks), max(int(np.max(one)) for one in blocks)
    if least < 0 or largest >= vocab_size:
        raise UserError(
            f"validation.corpora.{name}: {corpus.prefix} holds token id {least if least < 0 else largest}, but the "
            f"model's vocab_size is {vocab_size}; validate with the tokenizer that is trained on"
        )


def _file(corpus: IndexedCorpus) -> Path:
    return bin_path(corpus.prefix).resolve()
