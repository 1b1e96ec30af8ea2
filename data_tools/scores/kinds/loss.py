"""Loss of documents under an exported checkpoint (`kaiyuan export`): what the model finds hard, or knows by heart."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.scores.networks import batches_by_length, check_at_least_one, loading, pick_device
from data_tools.scores.scorer import MEASURE, identity_of, measures, texts_of
from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class LossScorer:
    """Columns NAME, nats per byte of UTF-8, and NAME_per_token, nats per token; both in FP32.

    A document follows an end-of-text token, as in training, and its own end is not predicted. It is cut into windows of
    `seq_length` tokens that do not overlap, each without what came before it: a window's first tokens are judged with
    little context, as `kaiyuan eval` does. Batches are padded, so that the last digits depend on which documents are
    scored together.

    Missing: a null text, and one without a token.

    Attributes:
        folder: an exported model with its tokenizer.
        seq_length: None: all that the model admits.
        tokens: of a document, the first ones count; None: all.
        batch: windows at a time.
        device: of torch; auto: the accelerator that is there, else the CPU.
    """

    version: ClassVar[int] = 1
    folder: Path
    seq_length: int | None = None
    tokens: int | None = None
    batch: int = 8
    device: str = "auto"
    name: str = "loss"

    def __post_init__(self) -> None:
        given = {"seq_length": self.seq_length, "tokens": self.tokens, "batch": self.batch}
        check_at_least_one("loss", **{name: value for name, value in given.items() if value is not None})

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return {self.name: MEASURE, f"{self.name}_per_token": MEASURE}

    def identity(self) -> dict[str, Any]:
        return identity_of(self, {"folder": self.folder})

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        model = _load(self.folder, self.device)
        nats, bytes_, tokens = model.sums(texts_of(batch).to_pylist(), self.seq_length, self.tokens, self.batch)
        with np.errstate(invalid="ignore"):
            return {self.name: measures(nats / bytes_), f"{self.name}_per_token": measures(nats / tokens)}


class _Model:
    def __init__(self, folder: Path, device: str):
        from megatron_kaiyuan.export.loading import load_network, load_tokenizer

        self._folder = folder
        with loading(folder, "exported model"):
            self._network = load_network(folder, pick_device(device))
            self._tokenizer = load_tokenizer(folder)
        vocabulary = self._network.get_output_embeddings().weight.shape[0]
        if len(self._tokenizer) > vocabulary:
            raise UserError(
                f"{folder}: the tokenizer has {len(self._tokenizer)} ids, the model {vocabulary}; export again"
            )

    def sums(
        self, texts: list[str | None], seq_length: int | None, limit: int | None, batch_size: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Nats, bytes and tokens of each document; 0 for one that has nothing to predict."""
        longest = self._network.config.max_position_embeddings
        context = seq_length or longest
        if context > longest:
            raise UserError(f"scorer loss: seq_length={context}, but {self._folder} admits {longest} tokens at most")
        nats, bytes_, tokens = (np.zeros(len(texts)) for _ in range(3))
        windows: list[tuple[int, list[int]]] = []
        for row, text in enumerate(texts):
            ids, read = self._encode(text or "", limit)
            tokens[row], bytes_[row] = len(ids), len(read.encode())
            stream = [self._tokenizer.eos_token_id, *ids]
            windows += [(row, stream[start : start + context + 1]) for start in range(0, len(ids), context)]
        for batch in batches_by_length([len(ids) for _, ids in windows], batch_size):
            losses = self._losses([windows[at][1] for at in batch])
            np.add.at(nats, [windows[at][0] for at in batch], losses)
        return nats, bytes_, tokens

    def _encode(self, text: str, limit: int | None) -> tuple[list[int], str]:
        """The first `limit` tokens, and the text that they stand for."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[int] = found["input_ids"]
        if limit is None or limit >= len(ids):
            return ids, text
        return ids[:limit], text[: found["offset_mapping"][limit - 1][1]]

    def _losses(self, windows: list[list[int]]) -> NDArray[np.float64]:
        """Nats of each window; padding comes last, where causal attention does not look."""
        import torch

        size = len(windows[0])
        inputs_bs = torch.tensor([ids[:-1] + [0] * (size - len(ids)) for ids in windows], device=self._network.device)
        labels_bs = torch.tensor([ids[1:] + [-100] * (size - len(ids)) for ids in windows], device=self._network.device)
        with torch.inference_mode():
            logits_bsv = self._network(inputs_bs, use_cache=False).logits
            nats_bs = torch.nn.functional.cross_entropy(
                logits_bsv.float().transpose(1, 2), labels_bs, ignore_index=-100, reduction="none"
            )
        sums: NDArray[np.float64] = nats_bs.double().sum(dim=1).cpu().numpy()
        return sums


@functools.lru_cache(maxsize=2)
def _load(folder: Path, device: str) -> _Model:
    return _Model(folder, device)


SCORER = LossScorer
