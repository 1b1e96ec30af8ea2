"""Any network as a model of lm-eval: the one way in which tasks are measured, while training and after it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.evaluate.heldout import Predictor
from megatron_kaiyuan.evaluate.quiet import quiet

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerBase

_LARGEST_BATCH = 64


def lm_eval_model(predictor: Predictor, tokenizer: PreTrainedTokenizerBase, max_length: int) -> HFLM:
    """lm-eval's own model of transformers around a network of any library.

    Tokenizing, truncation and the choice of the scored tokens are lm-eval's; only the forward pass is the predictor's.

    Args:
        max_length: tokens of context at most, as in training; longer contexts lose their beginning.

    Raises:
        UserError: lm-eval is not installed, or the tokenizer has ids that the network has not.
    """
    models = require("lm_eval.models.huggingface", extra="eval", purpose="the evaluation")
    if len(tokenizer) > predictor.vocabulary:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has {len(tokenizer):,} ids, but the network only "
            f"{predictor.vocabulary:,}; name the tokenizer that made the network's corpora"
        )
    with quiet():
        return models.HFLM(
            pretrained=_Causal(predictor),
            backend="causal",
            tokenizer=tokenizer,
            batch_size=min(predictor.batch_size(max_length), _LARGEST_BATCH),
            max_length=max_length,
            trust_remote_code=False,
            # Documents are parted by end-of-text in training: a text without a context is scored as following one.
            prefix_token_id=tokenizer.eos_token_id,
        )


class _Causal:
    """What lm-eval asks of a causal network of transformers."""

    def __init__(self, predictor: Predictor):
        from transformers import PretrainedConfig

        self.config = PretrainedConfig()
        self.device = predictor.device
        self._predictor = predictor

    def __call__(self, ids_bs: torch.Tensor) -> Any:
        # FP32: a logarithm of probabilities in FP16 would be worth three digits.
        return SimpleNamespace(logits=self._predictor.logits(ids_bs).float())

    def generate(self, **options: Any) -> torch.Tensor:
        assert self._predictor.generate is not None, "refused before, by `refuse_generation`"
        return self._predictor.generate(**options)
