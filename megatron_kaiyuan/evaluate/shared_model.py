"""lm-eval's model of transformers, whose requests are shared among the data-parallel copies of a network.

Rank 0 runs lm-eval, with the tasks and their data; the other ranks serve its requests (`replicas.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from megatron_kaiyuan.evaluate.predictor import Predictor
from megatron_kaiyuan.evaluate.quiet import quiet
from megatron_kaiyuan.evaluate.replicas import Served, is_first

# Larger batches of short texts do not make an evaluation faster.
_LARGEST_BATCH = 256


class SharedModel(HFLM):  # type: ignore[misc]
    """The three kinds of requests, each done by all copies.

    Attributes:
        served: what rank 0 leads and the other ranks serve.
    """

    def __init__(self, predictor: Predictor, tokenizer: PreTrainedTokenizerBase, max_length: int):
        super().__init__(
            pretrained=_Causal(predictor),
            backend="causal",
            tokenizer=tokenizer,
            batch_size=min(predictor.batch_size(max_length), _LARGEST_BATCH),
            max_length=max_length,
            trust_remote_code=False,
            # Documents are parted by end-of-text in training: a text without a context is scored as following one.
            prefix_token_id=tokenizer.eos_token_id,
        )
        self._predictor = predictor
        self._batches: list[int] = []
        self.served = Served(predictor.replicas, self._do)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        # Continuations of one token after the same context are one forward pass; a text of its own has none.
        return self.served.share_out("loglikelihood", _arguments(requests), lambda pair: pair[0] or pair[1])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self.served.share_out("loglikelihood_rolling", _arguments(requests), repr)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self.served.share_out("generate_until", _arguments(requests), repr)

    def _do(self, kind: str, share: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Answer some requests with this rank's copy, as lm-eval does."""
        if not share:
            return []
        requests = [Instance(kind, {}, arguments, number) for number, arguments in enumerate(share)]
        with quiet():
            found: list[Any] = getattr(super(), kind)(requests, disable_tqdm=not is_first())
        return found

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        """Lm-eval's, in batches that are larger where texts are shorter."""
        whole = self.batch_size
        # Where it is `auto`, lm-eval asks `_batch_scheduler`.
        self.batch_size_per_gpu = whole if override_bs or self._predictor.largest_batch else "auto"
        try:
            return super()._loglikelihood_tokens(requests, disable_tqdm or not is_first(), override_bs)
        finally:
            self.batch_size_per_gpu = whole

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Any]) -> int:
        """Return the size of the batch that a request is in; lm-eval asks for one after the other, longest first."""
        if pos == 0:
            self._batches = []
            while len(self._batches) < len(n_reordered_requests):
                _, context, continuation = n_reordered_requests[len(self._batches)]
                length = min(len(context) + len(continuation), self.max_length)
                size = min(self._predictor.batch_size(length), _LARGEST_BATCH)
                self._batches += [size] * size
        return self._batches[pos]


class _Causal:
    """What lm-eval asks of a causal network of transformers."""

    def __init__(self, predictor: Predictor):
        self.config = PretrainedConfig()
        self.device = predictor.device
        self._predictor = predictor

    def __call__(self, ids_bs: torch.Tensor) -> Any:
        # FP32: a logarithm of probabilities in FP16 would be worth three digits.
        return SimpleNamespace(logits=self._predictor.logits(ids_bs).float())

    def generate(self, **options: Any) -> torch.Tensor:
        assert self._predictor.generate is not None, "refused before"
        return self._predictor.generate(**options)


def _arguments(requests: Sequence[Instance]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]
