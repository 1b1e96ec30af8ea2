"""Sequence classifiers of Hugging Face, as FineWeb-Edu's: from a local folder, without its code and without network."""

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
from megatron_kaiyuan.errors import UserError, require


@dataclass(frozen=True)
class ClassifierScorer:
    """Of a network with one output, that output; with several, the probability of `label` (softmax), in FP32.

    A document longer than `tokens` (or than the model admits) is judged by its first ones. Batches are padded, so that
    the last digits depend on which documents are scored together.

    Missing: a null text, and one without a token.

    Attributes:
        label: as the model's config names it, or its number.
        device: of torch; auto: the accelerator that is there, else the CPU.
    """

    version: ClassVar[int] = 1
    folder: Path
    label: str | None = None
    tokens: int = 512
    batch: int = 32
    device: str = "auto"
    name: str = "classifier"

    def __post_init__(self) -> None:
        check_at_least_one("classifier", tokens=self.tokens, batch=self.batch)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return {self.name: MEASURE}

    def identity(self) -> dict[str, Any]:
        return identity_of(self, {"folder": self.folder})

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        classifier = _load(self.folder, self.device)
        output = classifier.output_of(self.label)
        return {self.name: measures(classifier.scores(texts_of(batch).to_pylist(), output, self.tokens, self.batch))}


class _Classifier:
    def __init__(self, folder: Path, device: str):
        import torch

        transformers = require("transformers", extra="eval", purpose="a sequence classifier")
        from megatron_kaiyuan.export.loading import quiet_transformers, require_forward, require_layers

        self._folder = folder
        self._device = pick_device(device)
        with loading(folder, "sequence classifier"), quiet_transformers():
            require_layers(folder)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            network, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
        if absent := sorted(report["missing_keys"]):
            raise UserError(
                f"{folder}: not a sequence classifier: its weights lack {absent[0]}; name the folder of a trained one"
            )
        if self._tokenizer.pad_token_id is None:
            raise UserError(f"{folder}: the tokenizer has no padding token; set pad_token in tokenizer_config.json")
        self._network = network.to(self._device).eval()
        with loading(folder, "sequence classifier"):
            if (positions := self._positions()) < 1:
                raise UserError(
                    f"{folder}: config.json and tokenizer_config.json admit no token; copy the folder again"
                )
            largest = max(self._tokenizer.get_vocab().values())
            if largest >= (rows := self._network.get_input_embeddings().weight.shape[0]):
                raise UserError(
                    f"{folder}: the tokenizer has the id {largest}, the network knows {rows}; copy it again"
                )
            outputs = require_forward(folder, self._network, largest, min(positions, _TRIAL_TOKENS)).shape[1]
        if beyond := [index for index in self._names() if not 0 <= index < outputs]:
            raise UserError(f"{folder}: id2label of config.json names output {beyond[0]}, the network has {outputs}")

    def _names(self) -> dict[int, str]:
        return {int(index): str(name) for index, name in self._network.config.id2label.items()}

    def output_of(self, label: str | None) -> int | None:
        """Number of the output for a label; None: the only one, without a softmax."""
        names = self._names()
        if len(names) == 1 and label is None:
            return None
        by_name = {name: index for index, name in names.items()} | {str(index): index for index in names}
        if label not in by_name or len(names) == 1:
            raise UserError(
                f"{self._folder}: label={label} is not one of the classifier's; write one of "
                f"{', '.join(names.values()) if len(names) > 1 else 'none, as it has one output'}"
            )
        return by_name[label]

    def scores(self, texts: list[str | None], output: int | None, longest: int, batch_size: int) -> NDArray[np.float64]:
        """Score texts; NaN where there is nothing to judge."""
        import torch

        limit = min(longest, self._positions())
        present = [index for index, text in enumerate(texts) if text is not None]
        scores: NDArray[np.float64] = np.full(len(texts), np.nan)
        if not present:
            return scores
        # Warnings about long texts are beside the point: they are cut here.
        ids = self._tokenizer([texts[index] for index in present], truncation=True, max_length=limit)["input_ids"]
        filled = [(index, row) for index, row in zip(present, ids, strict=True) if row]
        for batch in batches_by_length([len(row) for _, row in filled], batch_size):
            rows = self._tokenizer.pad({"input_ids": [filled[at][1] for at in batch]}, return_tensors="pt")
            with torch.inference_mode():
                logits = self._network(**rows.to(self._device)).logits.double()
                values = logits[:, 0] if output is None else logits.softmax(dim=1)[:, output]
            scores[[filled[at][0] for at in batch]] = values.cpu().numpy()
        return scores

    def _positions(self) -> int:
        """Tokens that the network admits; RoBERTa's first positions are used up by its padding."""
        config = self._network.config
        positions = getattr(config, "max_position_embeddings", None) or 1 << 30
        offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
        return min(positions - offset, self._tokenizer.model_max_length)


# Of the input that a network is tried with: as many as are read of a document unless the recipe says otherwise.
_TRIAL_TOKENS = 512
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "roberta-prelayernorm"}


@functools.lru_cache(maxsize=2)
def _load(folder: Path, device: str) -> _Classifier:
    return _Classifier(folder, device)


SCORER = ClassifierScorer
