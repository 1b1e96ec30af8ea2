"""Any network as a model of lm-eval: the one way in which tasks are measured, while training and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.evaluate.predictor import Predictor
from megatron_kaiyuan.evaluate.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_kaiyuan.evaluate.shared_model import SharedModel


def lm_eval_model(predictor: Predictor, tokenizer: PreTrainedTokenizerBase, max_length: int) -> SharedModel:
    """lm-eval's own model of transformers around a network of any library, on one rank or many.

    Tokenizing, truncation and the choice of the scored tokens are lm-eval's; only the forward pass is the predictor's.

    Args:
        max_length: tokens of context at most, as in training; longer contexts lose their beginning.

    Raises:
        UserError: lm-eval is not installed, or the tokenizer has ids that the network has not.
    """
    require("lm_eval.models.huggingface", extra="eval", purpose="the evaluation")
    if len(tokenizer) > predictor.vocabulary:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has {len(tokenizer):,} ids, but the network only "
            f"{predictor.vocabulary:,}; name the tokenizer that made the network's corpora"
        )
    with quiet():
        from megatron_kaiyuan.evaluate.shared_model import SharedModel

        return SharedModel(predictor, tokenizer, max_length)
