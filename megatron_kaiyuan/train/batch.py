"""This rank's part of a global batch, with what document boundaries and padding mean for it.

Suffixes: b micro-batch, s sequence.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from megatron.core import parallel_state
from numpy.typing import NDArray

from megatron_kaiyuan.config import RunConfig, TrainConfig
from megatron_kaiyuan.data.boundaries import document_numbers, position_ids
from megatron_kaiyuan.data.stream import PADDING, STARTS_ENTRY, TokenStream
from megatron_kaiyuan.train.run_length import pack_length

Batch = dict[str, "torch.Tensor | None"]


def sample_positions(position: int, train: TrainConfig, rank: int, ranks: int) -> list[NDArray[np.int64]]:
    """Where the samples of each micro-batch of one data-parallel rank start, int64[b] each.

    Sample k of the global batch starts at `position + k * seq_length`; rank d takes its part of each stripe
    of `micro_batch_size * data-parallel size` samples, so that the set of samples is the same for any layout.
    """
    rows = np.arange(train.micro_batch_size)
    stripes = range(rank * len(rows), train.global_batch_size, ranks * len(rows))
    return [position + (first + rows) * train.seq_length for first in stripes]


class GlobalBatch(Iterator[Batch]):
    """The micro-batches of the global batch at a token offset that this data-parallel rank trains on.

    Every rank of a model-parallel group reads the same samples, see `sample_positions`: masks need not travel along
    the pipeline.

    A micro-batch holds tokens, labels and position_ids, int64[b, s]; documents, int64[b, s], the number of each token's
    document, or None where attention is causal over all of them; loss_mask, float32[b, s], or None where every label
    counts.
    """

    def __init__(self, stream: TokenStream, position: int, run: RunConfig, device: torch.device):
        self._stream, self._data, self._device = stream, run.data, device
        self._length, self._rows = run.train.seq_length, run.train.micro_batch_size
        self._packed = pack_length(stream) is not None
        self._tokens = run.train.tokens_per_step
        self._counted = 0
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        self._positions = iter(sample_positions(position, run.train, rank, ranks))

    def __next__(self) -> Batch:
        positions = next(self._positions)
        data = self._data
        # A pack knows nothing of the next one, so that its last token has no label.
        count = self._length + (not self._packed)
        marked = self._masks_loss or data.reset_attention_mask
        tokens, marks = self._stream.read_batch(positions, count, starts=marked)
        labels = np.roll(tokens, -1, axis=1)[:, : self._length]
        ids_s = torch.arange(self._length, device=self._device)
        batch: Batch = {
            "tokens": self._to_device(tokens[:, : self._length]),
            "labels": self._to_device(labels),
            "position_ids": ids_s.expand(self._rows, -1),
            "documents": None,
            "loss_mask": None,
        }
        if marks is not None:
            self._add_boundaries(batch, marks)
        return batch

    def loss_weight(self) -> torch.Tensor | None:
        """Tokens of the global batch over labels that count in it, when all micro-batches were read.

        The mean over all labels, masked ones as zeros, times this is the mean over those that count. None: all
        count. Collective over data-parallel ranks.
        """
        if not self._masks_loss:
            return None
        counted = torch.tensor(self._counted).to(self._device, non_blocking=True)
        torch.distributed.all_reduce(counted, group=parallel_state.get_data_parallel_group())
        return self._tokens / counted.clamp(min=1)

    @property
    def _masks_loss(self) -> bool:
        return self._packed or self._data.eod_mask_loss

    def _add_boundaries(self, batch: Batch, marks: NDArray[np.uint8]) -> None:
        starts_bs = (marks[:, : self._length] & STARTS_ENTRY) != 0
        if self._data.reset_attention_mask:
            batch["documents"] = self._to_device(document_numbers(starts_bs))
        if self._data.reset_position_ids:
            batch["position_ids"] = self._to_device(position_ids(starts_bs))
        if self._masks_loss:
            counts_bs = self._counts(marks)
            self._counted += int(counts_bs.sum())
            batch["loss_mask"] = self._to_device(counts_bs.astype(np.float32))

    def _counts(self, marks: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which labels count: none that is padding, follows padding or, with `eod_mask_loss`, starts a document."""
        next_marks = np.roll(marks, -1, axis=1)[:, : self._length]
        uncounted = (PADDING | STARTS_ENTRY) if self._data.eod_mask_loss else PADDING
        counts = ((next_marks & uncounted) == 0) & ((marks[:, : self._length] & PADDING) == 0)
        if self._packed:
            counts[:, -1] = False
        return counts

    def _to_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cpu":
            return tensor
        # From pinned memory, so that the host does not wait.
        return tensor.pin_memory().to(self._device, non_blocking=True)
