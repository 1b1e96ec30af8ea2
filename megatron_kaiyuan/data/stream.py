"""The training tokens of all phases as one sequence. A position is a token offset in it, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError


class TokenStream:
    """Phases one after the other. What is read depends on the position alone: any order, any process, any fork.

    Args:
        phase_folders: in training order.
        vocab_size: ids must be below it.
        check_corpora: see `Phase`.

    Attributes:
        phases: the opened phases.
        boundaries: int64[phases + 1], position at which each phase starts, then the total.
        tokens: tokens of all phases.

    Raises:
        UserError: a phase cannot be opened, or a corpus was tokenized with a larger vocabulary.
    """

    def __init__(self, phase_folders: Sequence[Path], vocab_size: int, *, check_corpora: bool = True):
        self.vocab_size = vocab_size
        self.phases = [Phase(folder, check_corpora=check_corpora) for folder in phase_folders]
        self.boundaries: NDArray[np.int64] = np.cumsum([0, *(phase.tokens for phase in self.phases)], dtype=np.int64)
        self.tokens = int(self.boundaries[-1])
        for phase in self.phases:
            _check_largest_ids(phase, vocab_size)

    def __repr__(self) -> str:
        return f"TokenStream({len(self.phases)} phases, {self.tokens} tokens)"

    def phase_at(self, position: int) -> tuple[int, int]:
        """The phase that holds the token at a position, and the token's offset in that phase.

        Raises:
            UserError: the position is not in the stream.
        """
        self._check_range(position, 1)
        index = int(np.searchsorted(self.boundaries, position, side="right")) - 1
        return index, position - int(self.boundaries[index])

    def read(self, position: int, count: int) -> NDArray[np.int64]:
        """Tokens [position, position + count), int64[count], across documents and phases.

        Raises:
            UserError: the range is not in the stream, or an id is outside the vocabulary.
        """
        self._check_range(position, count)
        out: NDArray[np.int64] = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            index, offset = self.phase_at(position + filled)
            stop = filled + min(count - filled, self.phases[index].tokens - offset)
            self.phases[index].read_into(out[filled:stop], offset)
            filled = stop
        # One pass over the bits: a negative id is a huge one.
        if count and int(out.view(np.uint64).max()) >= self.vocab_size:
            self._refuse_ids(position, out)
        return out

    def sample(self, position: int, seq_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens and labels, both int64[seq_length]; labels are the tokens one position later.

        The two are views of one array.

        Raises:
            UserError: as `read` of seq_length + 1 tokens.
        """
        tokens = self.read(position, seq_length + 1)
        return tokens[:-1], tokens[1:]

    def _check_range(self, position: int, count: int) -> None:
        if position < 0 or count < 0 or position + count > self.tokens:
            raise UserError(
                f"the token stream holds {self.tokens} tokens, but [{position}, {position + count}) was asked for; "
                "lower train.train_tokens or add phases"
            )

    def _refuse_ids(self, position: int, tokens: NDArray[np.int64]) -> NoReturn:
        row = int(np.argmax(tokens.view(np.uint64) >= self.vocab_size))
        index, offset = self.phase_at(position + row)
        phase = self.phases[index]
        dataset, sequence = phase.document(phase.locate(offset)[0])
        raise UserError(
            _outside(f"{phase.corpora[dataset].prefix}: sequence {sequence}", int(tokens[row]), self.vocab_size)
        )


def _check_largest_ids(phase: Phase, vocab_size: int) -> None:
    """Refuse before the first step what would else stop the run at some later one."""
    for corpus, entry in zip(phase.corpora, phase.manifest["corpora"], strict=True):
        largest = entry.get("max_token_id")
        if largest is not None and largest >= vocab_size:
            raise UserError(_outside(f"{corpus.prefix}", largest, vocab_size))


def _outside(place: str, token: int, vocab_size: int) -> str:
    return (
        f"{place} holds token id {token}, but the model's vocab_size is {vocab_size}: "
        "train with the tokenizer's vocabulary size"
    )
