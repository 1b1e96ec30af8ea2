"""A network that is measured: logits of whole sequences, whatever library it is of and on however many ranks it lies.

Shapes: B sequences in a batch, S tokens of each, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from megatron_kaiyuan.evaluate.replicas import ALONE, Replicas, replicas

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# FP32 logits of one batch: 128 MB where caches are small and memory is the host's, 1 GB on an accelerator of one's own.
FEW_LOGITS, MANY_LOGITS = 32 << 20, 256 << 20


@dataclass(frozen=True)
class Predictor:
    """A network to measure, in evaluation mode.

    Attributes:
        logits: token ids [B, S] on `device` -> logits [B, S, V], whose row s predicts token s + 1. Collective over the
            ranks that the network lies on, each of which receives all logits.
        vocabulary: V.
        generate: as in transformers, for tasks that generate text; None: it cannot.
        replicas: the data-parallel copies of the network, which share the work.
        largest_batch: sequences that are looked at together; None: as many as `logits_per_batch` allows.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    vocabulary: int
    device: torch.device
    generate: Callable[..., torch.Tensor] | None = None
    replicas: Replicas = ALONE
    largest_batch: int | None = None
    logits_per_batch: int = FEW_LOGITS

    def counted(self, advance: Callable[[int], None]) -> Predictor:
        """Return the same predictor, which reports how many sequences it has read."""

        def logits(ids_bs: torch.Tensor) -> torch.Tensor:
            found_bsv = self.logits(ids_bs)
            advance(len(ids_bs))
            return found_bsv

        return replace(self, logits=logits)

    def batch_size(self, seq_length: int) -> int:
        """Sequences of a length whose logits are looked at together."""
        if self.largest_batch is not None:
            return self.largest_batch
        return max(1, self.logits_per_batch // (seq_length * self.vocabulary))


def predictor_of_transformers(network: PreTrainedModel) -> Predictor:
    """A causal language model of transformers, whole on each rank."""
    return Predictor(
        lambda ids_bs: network(ids_bs, use_cache=False).logits,
        network.get_output_embeddings().weight.shape[0],
        network.device,
        network.generate,
        replicas(),
        logits_per_batch=_logits_per_batch(network.device),
    )


def predictor_of_megatron(models: Sequence[torch.nn.Module], vocabulary: int, device: torch.device | str) -> Predictor:
    """A network of Megatron Core as it trains, in the precision that it trains in, on any layout of ranks.

    Args:
        models: this rank's chunks of the network.
        vocabulary: padded, as the network has it.
    """
    from megatron_kaiyuan.generate.parallel import sequence_logits

    device = torch.device(device)

    def logits(ids_bs: torch.Tensor) -> torch.Tensor:
        return sequence_logits(models, ids_bs, vocabulary)

    def generate(**options: Any) -> torch.Tensor:
        # It brings transformers, which logits do without.
        from megatron_kaiyuan.generate.adapter import LogitsModel

        # lm-eval asks for a cache, which is not where the network lies on many ranks.
        found: torch.Tensor = LogitsModel(logits, device).generate(**{**options, "use_cache": False})
        return found

    return Predictor(logits, vocabulary, device, generate, replicas(), logits_per_batch=_logits_per_batch(device))


def _logits_per_batch(device: torch.device) -> int:
    return FEW_LOGITS if device.type == "cpu" else MANY_LOGITS
