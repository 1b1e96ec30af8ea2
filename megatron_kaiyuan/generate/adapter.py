"""transformers' `generate` over a network of any library, by a whole forward pass for each token.

Without a cache, so that the network may lie on many ranks, as in training: what it needs is logits on every rank.
Each rank draws from a generator with the same state and takes the same tokens; `logits` has to return the same
numbers on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

Logits = Callable[[torch.Tensor], torch.Tensor]


class LogitsModel(PreTrainedModel, GenerationMixin):
    """A network of transformers that has no weights of its own.

    Args:
        logits: token ids int64[batch, sequence] -> logits [batch, sequence, vocabulary].
        device: where the ids are.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, logits: Logits, device: torch.device):
        super().__init__(PretrainedConfig())
        self._logits, self._device = logits, device
        self.generation_config.use_cache = False

    @property
    def device(self) -> torch.device:
        return self._device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> CausalLMOutput:
        """Return FP32 logits of all tokens; of rows that begin with padding, those after the last token alone.

        Args:
            attention_mask: [batch, sequence], 0 for padding at the start of a row; None: there is none.
        """
        if attention_mask is None or bool(attention_mask.all()):
            return CausalLMOutput(logits=self._logits(input_ids).float())
        # At the end of a row no token sees it.
        padding = (attention_mask == 0).sum(1).tolist()
        moved = torch.stack([row.roll(-count) for row, count in zip(input_ids, padding, strict=True)])
        last = torch.tensor([input_ids.shape[1] - 1 - count for count in padding], device=input_ids.device)
        logits = self._logits(moved)[torch.arange(len(moved), device=input_ids.device), last]
        return CausalLMOutput(logits=logits[:, None].float())

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """As transformers calls it: without a cache, all tokens are given again."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}
