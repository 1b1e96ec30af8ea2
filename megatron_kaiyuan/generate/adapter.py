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

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        """Return the logits of all tokens, in FP32."""
        return CausalLMOutput(logits=self._logits(input_ids).float())

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}
