"""The training tokens of all phases as one sequence. A position is a token offset in it, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.data import _reader
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.data.tokenizer_identity import Tokenizer, only_tokenizer, tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError

# What the marks of a token say; csrc/reader/reader.h.
STARTS_ENTRY, PADDING = 1, 2


class TokenStream:
    """Phases one after the other. What is read depends on the position alone: any order, any process, any fork.

    Args:
        phase_folders: in training order.
        vocab_size: ids must be below it.
        check: as for `Phase`; corpora that phases share are opened and checked once.

    Attributes:
        phases: the opened phases.
        boundaries: int64[phases + 1], position at which each phase starts, then the total.
        tokens: tokens of all phases.
        tokenizer: that made the corpora; None: unknown.

    Raises:
        UserError: a phase cannot be opened, two tokenizers made the corpora, or a corpus holds ids that are not
            below `vocab_size`.
    """

    def __init__(self, phase_folders: Sequence[Path], vocab_size: int, *, check: tuple[int, int] | None = (0, 1)):
        self.vocab_size = vocab_size
        opened: dict[Path, IndexedCorpus] = {}
        self.phases = [Phase(folder, check=None, opened=opened) for folder in phase_folders]
        self.boundaries: NDArray[np.int64] = np.cumsum([0, *(phase.tokens for phase in self.phases)], dtype=np.int64)
        self.tokens = int(self.boundaries[-1])
        self._reader = _reader.Stream([phase.reader for phase in self.phases], vocab_size)
        self.tokenizer = only_tokenizer(
            [pair for phase in self.phases for pair in _tokenizers(phase)], "train on corpora of one tokenizer"
        )
        for phase in self.phases:
            _check_largest_ids(phase, vocab_size)
            if check is not None:
                phase.check(*check)

    def __getstate__(self) -> tuple[list[Path], int]:
        """For workers that are not forked: they open the same files again, and check what they read."""
        return [phase.folder for phase in self.phases], self.vocab_size

    def __setstate__(self, state: tuple[list[Path], int]) -> None:
        self.__init__(*state, check=None)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"TokenStream({len(self.phases)} phases, {self.tokens} tokens)"

    def phase_at(self, position: int) -> tuple[int, int]:
        """The phase that holds the token at a position, and the token's offset in that phase.

        Raises:
            UserError: the position is not in the stream.
        """
        if not 0 <= position < self.tokens:
            self._refuse_range(position, 1)
        index = int(np.searchsorted(self.boundaries, position, side="right")) - 1
        return index, position - int(self.boundaries[index])

    def read_batch(
        self, positions: NDArray[np.int64] | Sequence[int], count: int, starts: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8] | None]:
        """The `count` tokens from each of n positions, across documents and phases.

        Args:
            positions: int64[n], in any order.
            starts: also give marks.

        Returns:
            Tokens, int64[n, count], 0 where there is padding; and None or marks, uint8[n, count]: STARTS_ENTRY at the
            first token of each document, piece or padding, PADDING at each token of padding.

        Raises:
            UserError: a range is not in the stream, a block or a sequence is damaged, or an id is outside the
                vocabulary.
        """
        positions = np.ascontiguousarray(positions, np.int64)
        if count < 0:
            self._refuse_range(int(positions[0]), count)
        try:
            return self._reader.read(positions, count, starts)
        except IndexError:
            outside = (positions < 0) | (positions > self.tokens - count)
            self._refuse_range(int(positions[outside][0]), count)
        except _reader.Damage as damage:
            self._refuse(damage)

    def read(self, position: int, count: int) -> NDArray[np.int64]:
        """Tokens [position, position + count), int64[count].

        Raises:
            UserError: as `read_batch`.
        """
        return self.read_batch([position], count)[0][0]

    def sample(self, position: int, seq_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens and labels, both int64[seq_length]; labels are the tokens one position later.

        The two are views of one array.

        Raises:
            UserError: as `read` of seq_length + 1 tokens.
        """
        tokens = self.read(position, seq_length + 1)
        return tokens[:-1], tokens[1:]

    def _refuse_range(self, position: int, count: int) -> NoReturn:
        raise UserError(
            f"the token stream holds {self.tokens} tokens, but [{position}, {position + count}) was asked for; "
            "lower train.train_tokens or add phases"
        )

    def _refuse(self, damage: _reader.Damage) -> NoReturn:
        message, file, phase, dataset = damage.args
        if file:
            raise self.phases[phase].explain(damage) from damage
        prefix = self.phases[phase].corpora[dataset].prefix
        raise UserError(_outside(f"{prefix}: {message}", self.vocab_size)) from damage


def _tokenizers(phase: Phase) -> list[tuple[str, Tokenizer | None]]:
    """What made each corpus; phases of before this was recorded have it from the manifests of their corpora."""
    return [
        (f"{corpus.prefix} (phase {phase.folder})", entry.get("tokenizer") or tokenizer_of_corpus(corpus.prefix))
        for corpus, entry in zip(phase.corpora, phase.manifest["corpora"], strict=True)
    ]


def _check_largest_ids(phase: Phase, vocab_size: int) -> None:
    """Refuse before the first step what would else stop the run at some later one."""
    for corpus, entry in zip(phase.corpora, phase.manifest["corpora"], strict=True):
        largest = entry.get("max_token_id")
        if largest is not None and largest >= vocab_size:
            raise UserError(_outside(f"phase {phase.folder}: {corpus.prefix} holds token id {largest}", vocab_size))


def _outside(found: str, vocab_size: int) -> str:
    return f"{found}, but the model's vocab_size is {vocab_size}: train with the tokenizer's vocabulary size"
