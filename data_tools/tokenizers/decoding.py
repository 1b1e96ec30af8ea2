"""A document of a corpus as text."""

from __future__ import annotations

from pathlib import Path

from data_tools.corpora.corpus_files import manifest_path, read_manifest
from data_tools.tokenizers.tokenizer_formats import open_reference
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError


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
    path = tokenizer or Path(made_by.get("path", ""))
    if not tokenizer and not path.is_file():
        return " ".join(map(str, ids))
    found = open_reference(path)
    if made_by and found.fingerprint() != made_by["fingerprint"]:
        raise UserError(f"{found.path}: is not the tokenizer that made {prefix}; put that one there again")
    return found.decode(ids)
