"""Held-out loss in nats per token, beside the unigram entropy of the same tokens.

A corpus is one stream of its documents in order, cut into windows of `seq_length` inputs; window k predicts the
stream's tokens k * seq_length + 1 and on, so that no token is predicted twice. The unigram entropy
H = -sum p log p is what a model would reach that knows the frequencies of these very tokens and nothing else.

Bits per byte compare models whatever their tokenizers: nats per token / ln 2 * tokens of the corpus / UTF-8 bytes of
its documents, as its sidecar counts them. The token that ends a document is predicted like any other, and has no bytes.

Shapes: B windows in a batch, S seq_length, V padded vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.tokenizer_identity import compare_folder, tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.by_position import ByPosition
from megatron_kaiyuan.evaluate.predictor import Predictor
from megatron_kaiyuan.evaluate.text_bytes import text_bytes


@dataclass
class Tally:
    """Sums over predicted tokens; two tallies add up."""

    nats: float
    counts_v: NDArray[np.int64]
    by_position: ByPosition = field(default_factory=ByPosition.empty)

    @property
    def tokens(self) -> int:
        return int(self.counts_v.sum())

    def __add__(self, other: Tally) -> Tally:
        positions = self.by_position + other.by_position
        return Tally(self.nats + other.nats, self.counts_v + other.counts_v, positions)

    def figures(self) -> dict[str, Any]:
        """Plain figures: predicted tokens, nats per token, unigram entropy in nats."""
        entropy = unigram_entropy(self.counts_v)
        return {"tokens": self.tokens, "nats_per_token": self.nats / self.tokens, "unigram_entropy": entropy}


def held_out_loss(
    predictor: Predictor,
    corpora: Mapping[str, IndexedCorpus],
    seq_length: int,
    token_limit: int | None = 100_000,
    advance: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Predict held-out corpora.

    Args:
        corpora: by name; a name is usually a domain.
        seq_length: tokens of context at most, as in training.
        token_limit: predicted tokens at most, in equal shares for the corpora; a corpus above its share gives
            windows at even distances. None: all of it.
        advance: called with the number of tokens that were predicted since its last call.

    Returns:
        {"tokens", "nats_per_token", "unigram_entropy", "bits_per_byte", "seq_length", "domains": {name: the first
        four}, "by_position": bins of all domains, see `by_position.py`}. Bits per byte are None for a corpus without a
        sidecar, and for all corpora with one of these.

    Raises:
        UserError: a corpus has no token to predict, or ids outside the model's vocabulary.
    """
    share = _share(corpora, token_limit)
    tallies = {name: _measure(predictor, corpus, seq_length, share, advance) for name, corpus in corpora.items()}
    first, *others = tallies.values()
    overall = sum(others, start=first)
    found = {name: _bits_and_bytes(tally, corpora[name]) for name, tally in tallies.items()}
    domains = {name: {**tally.figures(), **_bits_per_byte([found[name]])} for name, tally in tallies.items()}
    return {
        **overall.figures(),
        **_bits_per_byte(found.values()),
        "seq_length": seq_length,
        "domains": domains,
        "by_position": overall.by_position.figures(),
    }


def tokens_to_predict(corpora: Mapping[str, IndexedCorpus], seq_length: int, token_limit: int | None) -> int:
    """How many tokens `held_out_loss` predicts."""
    share = _share(corpora, token_limit)
    return sum(int(_windows(max(one.num_tokens - 1, 0), seq_length, share)[1].sum()) for one in corpora.values())


def _share(corpora: Mapping[str, IndexedCorpus], token_limit: int | None) -> int | None:
    return None if token_limit is None else max(token_limit // len(corpora), 1)


def open_corpora(prefixes: Sequence[Path]) -> dict[str, IndexedCorpus]:
    """Open held-out corpora under short names: the prefix's last part without Megatron's `_text_document`.

    Raises:
        UserError: none is given, one is damaged, or two have one name.
    """
    if not prefixes:
        raise UserError("evaluation: name at least one held-out corpus")
    corpora: dict[str, IndexedCorpus] = {}
    for prefix in prefixes:
        name = prefix.name.removesuffix("_document").removesuffix("_text")
        if name in corpora:
            raise UserError(f"{prefix}: another held-out corpus is called {name!r} too; rename one")
        corpora[name] = IndexedCorpus(prefix)
    return corpora


def check_tokenizer(model_folder: Path, corpora: Mapping[str, IndexedCorpus]) -> None:
    """Compare the tokenizer in a model's folder with those that made the corpora; unknown ones are passed over.

    Raises:
        UserError: another tokenizer made a corpus.
    """
    for corpus in corpora.values():
        tokenizer = tokenizer_of_corpus(corpus.prefix)
        if tokenizer and compare_folder(tokenizer, model_folder) == "other":
            raise UserError(
                f"{corpus.prefix}: made by another tokenizer than the one in {model_folder} (fingerprint "
                f"{tokenizer['fingerprint']}); evaluate on corpora of the model's tokenizer"
            )


def unigram_entropy(counts: NDArray[np.int64]) -> float:
    """-sum p log p in nats, from how often each id occurs."""
    probabilities = counts[counts > 0] / counts.sum()
    return float(-(probabilities * np.log(probabilities)).sum())


def _bits_and_bytes(tally: Tally, corpus: IndexedCorpus) -> tuple[float, int | None]:
    """Bits that the model needs for a corpus, as those of the predicted tokens say, and its UTF-8 bytes."""
    return tally.nats / tally.tokens / math.log(2) * corpus.num_tokens, text_bytes(corpus)


def _bits_per_byte(corpora: Iterable[tuple[float, int | None]]) -> dict[str, float | None]:
    """Of corpora laid together; each counts by its bytes, however few of its tokens were predicted."""
    bits, sizes = zip(*corpora, strict=True)
    known = None not in sizes
    return {"bits_per_byte": sum(bits) / sum(sizes) if known else None}


def _measure(
    predictor: Predictor, corpus: IndexedCorpus, seq_length: int, limit: int | None, advance: Callable[[int], None]
) -> Tally:
    vocabulary, copies = predictor.vocabulary, predictor.replicas
    mine = Tally(0.0, np.zeros(vocabulary, np.int64))
    ends = np.cumsum(corpus.lengths, dtype=np.int64)
    # The same batches whatever the number of copies: figures differ by the order of their sum alone.
    batches = list(_batches(corpus, seq_length, limit, predictor.batch_size(seq_length)))
    for starts, size in copies.share(batches):
        windows_bs = np.stack([_read(corpus, ends, start, size + 1) for start in starts])
        if windows_bs.max() >= vocabulary or windows_bs.min() < 0:
            raise UserError(
                f"{corpus.prefix}: token id {windows_bs.max()} is outside the model's {vocabulary} ids; "
                "evaluate on a corpus made with the model's tokenizer"
            )
        mine += _predict(predictor, windows_bs)
        advance(windows_bs[:, 1:].size * copies.count)
    first, *others = copies.gather(mine)
    total = sum(others, start=first)
    if not total.tokens:
        raise UserError(f"{corpus.prefix}: fewer than two tokens, nothing to predict; name a larger held-out corpus")
    return total


# Not inference mode: a network that trains keeps tensors, as of its rotary embedding, that a backward pass meets later.
@torch.no_grad()
def _predict(predictor: Predictor, windows_bs: NDArray[np.int64]) -> Tally:
    tokens_bs = torch.from_numpy(windows_bs).to(predictor.device)
    logits_bsv = predictor.logits(tokens_bs[:, :-1])
    labels_bs = tokens_bs[:, 1:]
    nats = torch.nn.functional.cross_entropy(logits_bsv.flatten(0, 1).float(), labels_bs.flatten(), reduction="none")
    counts_v = np.bincount(windows_bs[:, 1:].ravel(), minlength=predictor.vocabulary)
    nats_bs = nats.double().view(labels_bs.shape).cpu().numpy()
    return Tally(nats.double().sum().item(), counts_v, ByPosition.of(nats_bs))


def _batches(
    corpus: IndexedCorpus, seq_length: int, limit: int | None, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Starts of windows in the corpus stream, and how many tokens these predict; a shorter last one comes by itself."""
    starts, sizes = _windows(max(corpus.num_tokens - 1, 0), seq_length, limit)
    for size in np.unique(sizes):
        of_size = starts[sizes == size]
        for at in range(0, len(of_size), batch_size):
            yield of_size[at : at + batch_size], int(size)


def _windows(to_predict: int, seq_length: int, limit: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each window starts and how many tokens it predicts; at most `limit` in all."""
    if limit is None or to_predict <= limit:
        starts = np.arange(0, to_predict, seq_length)
        return starts, np.minimum(seq_length, to_predict - starts)
    size = min(seq_length, limit, to_predict)
    available, wanted = to_predict // size, limit // size
    return np.arange(wanted) * available // wanted * size, np.full(wanted, size)


def _read(corpus: IndexedCorpus, ends: NDArray[np.int64], start: int, count: int) -> NDArray[np.int64]:
    """Tokens [start, start + count) of the documents laid end to end."""
    parts = []
    document = int(np.searchsorted(ends, start, side="right"))
    offset = start - int(ends[document] - corpus.lengths[document])
    while count > 0:
        part = corpus.tokens(document, offset, offset + count)
        parts.append(part)
        count -= len(part)
        document, offset = document + 1, 0
    return np.concatenate(parts).astype(np.int64)
