"""Documents of a corpus as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.corpora.corpus_files import manifest_path, read_manifest, tokenizer_path
from data_tools.tokenizers.tokenizer_formats import open_reference
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError


class CorpusText:
    """The texts of a corpus, by the tokenizer that made it and no other.

    Args:
        tokenizer: where the tokenizer is now, if not where the manifest says.

    Raises:
        UserError: the corpus or the tokenizer is missing, or the tokenizer is another one.
    """

    def __init__(self, prefix: Path, tokenizer: Path | None = None):
        made_by = read_manifest(prefix)["tokenizer"]
        path = tokenizer or tokenizer_path(prefix, made_by)
        if not path.exists():
            raise UserError(f"{path}: tokenizer not found, which made {prefix}; name it with --tokenizer-model")
        self._corpus = IndexedCorpus(prefix, check=None)
        self._reference = open_reference(path)
        self._end: int = made_by["eod_id"]
        if self._reference.fingerprint() != made_by["fingerprint"]:
            raise UserError(
                f"{self._reference.path}: is not the tokenizer that made {prefix}; put that one there again, or name "
                "it with --tokenizer-model"
            )

    def texts(self, sequences: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The texts of sequences, without the token that ends a document.

        They are what was tokenized where the tokenizer is lossless; one that normalises gives normal forms. A text
        whose size is not the `bytes` of its metadata row has changed.
        """
        ids = [self._corpus.tokens(int(sequence)).tolist() for sequence in sequences]
        return self._reference.decode_batch([one[:-1] if one and one[-1] == self._end else one for one in ids])


def decode_sample(prefix: Path, sequence: int, tokenizer: Path | None = None, most_tokens: int = 200) -> str:
    """The beginning of a sequence as text, or as ids when the tokenizer of the manifest is not to be had.

    Args:
        tokenizer: where the tokenizer is now, if not where the manifest says.

    Raises:
        UserError: there is no such sequence, or the tokenizer is no longer the one that made the corpus.
    """
    corpus = IndexedCorpus(prefix)
    if not 0 <= sequence < len(corpus):
        known = f"give one of 0 to {len(corpus) - 1}" if len(corpus) else "it is empty"
        raise UserError(f"{prefix}: has no sequence {sequence}; {known}")
    ids = corpus.tokens(sequence, 0, most_tokens).tolist()
    made_by = read_manifest(prefix)["tokenizer"] if manifest_path(prefix).exists() else {}
    path = tokenizer or (tokenizer_path(prefix, made_by) if made_by else Path())
    if not tokenizer and not path.is_file():
        return " ".join(map(str, ids))
    found = open_reference(path)
    if made_by and found.fingerprint() != made_by["fingerprint"]:
        raise UserError(f"{found.path}: is not the tokenizer that made {prefix}; put that one there again")
    return found.decode(ids)
