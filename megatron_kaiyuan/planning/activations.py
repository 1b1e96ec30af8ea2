"""Bytes that a micro-batch keeps between its forward and its backward pass, tensor by tensor.

What autograd saves for the modules of `model/spec.py` with megatron-core 0.16, and what it computes again.
Shapes: s sequence, b micro-batch, H hidden, F ffn, N heads, G query groups, D head size, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from megatron_kaiyuan.planning.parameters import BYTES, PipelineStage
from megatron_kaiyuan.platform.datasheets import Device

_FP32, _INT64 = 4, 8


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch on a rank of a stage.

    Attributes:
        device: which kernels its passes use.
    """

    stage: PipelineStage
    device: Device

    @property
    def element(self) -> int:
        return BYTES[self.stage.run.train.precision]

    @property
    def tokens(self) -> int:
        train = self.stage.run.train
        return train.micro_batch_size * train.seq_length

    @property
    def tensor_ranks(self) -> int:
        return self.stage.run.parallel.tensor_model_parallel_size

    @property
    def local_tokens(self) -> int:
        """Tokens of the residual stream that a tensor-parallel rank holds."""
        parallel = self.stage.run.parallel
        return self.tokens // (self.tensor_ranks if parallel.sequence_parallel else 1)

    @property
    def hidden(self) -> int:
        """Bytes of what enters and leaves a sub-layer, [s, b, H]."""
        return self.local_tokens * self.stage.run.model.hidden_size * self.element

    @property
    def stream_element(self) -> int:
        return _FP32 if self.stage.run.model.fp32_residual else self.element

    @property
    def stream(self) -> int:
        """Bytes of the residual stream, [s, b, H]."""
        return self.local_tokens * self.stage.run.model.hidden_size * self.stream_element

    @property
    def head_element(self) -> int:
        return _FP32 if self.stage.run.model.fp32_head else self.element

    @property
    def head_weight(self) -> int:
        """Elements of the output layer, or of the embedding, [V / tensor ranks, H]."""
        model = self.stage.run.model
        return model.padded_vocab_size * model.hidden_size // self.tensor_ranks

    @property
    def logits(self) -> int:
        """Elements of the logits, [s, b, V / tensor ranks]."""
        return self.tokens * self.stage.run.model.padded_vocab_size // self.tensor_ranks

    def saved(self) -> int:
        """Bytes that stay from the end of a stage's forward pass to the start of its backward pass, logits apart."""
        run = self.stage.run
        total = self.stage.layers * self._layer() + self._boundary()
        # The angles that queries and keys are rotated by are one tensor for all layers.
        total += run.train.seq_length * run.model.kv_channels * _FP32
        # Ids, labels and positions, and numbers of documents; a mask of them is one for all layers.
        total += (3 + run.data.reset_attention_mask) * self.tokens * _INT64
        if run.data.reset_attention_mask and self.device.platform == "npu":
            total += self.tokens * run.train.seq_length
        return total

    def computed_again(self) -> tuple[int, int]:
        """Bytes that are restored for the backward pass of a layer's attention, and of its MLP, which comes first."""
        attention, mlp = self._attention(), self._mlp()
        if self._recomputed == {"layer"}:
            return attention, attention + mlp
        return attention - self._attention(self._recomputed), mlp - self._mlp(self._recomputed)

    def released(self) -> int:
        """Bytes of a layer's MLP that are gone when the backward pass of its attention runs."""
        return 0 if self._recomputed == {"layer"} else self._mlp(self._recomputed)

    @property
    def _recomputed(self) -> frozenset[str]:
        return self.stage.run.parallel.recomputed

    def _boundary(self) -> int:
        """Where the stage begins and ends."""
        run = self.stage.run
        total = 0
        if self.stage.is_first and run.model.embedding_norm:
            total += self._stream_norm()
        if self.stage.is_last:
            total += self._stream_norm() + self.hidden // self.element * self.head_element
            if self.head_element > self.element:
                total += self.head_weight * self.head_element
        else:
            total += self.stream
        # Between the chunks of a rank there are others': each one's last output is kept too.
        return total + (self.stage.chunks - 1) * self.stream

    def _layer(self) -> int:
        if self._recomputed == {"layer"}:
            return self.stream
        return self._attention(self._recomputed) + self._mlp(self._recomputed)

    def _attention(self, recomputed: Set[str] = frozenset()) -> int:
        model, element, tokens = self.stage.run.model, self.element, self.tokens
        size, heads = model.kv_channels, model.num_attention_heads // self.tensor_ranks
        groups = model.num_query_groups // self.tensor_ranks
        query, keys = tokens * heads * size * element, tokens * groups * size * element
        total = self._sub_layer()
        # The attention's result, which the output projection saves as its input.
        total += query
        # What is recomputed keeps its inputs, of which the values are a view.
        if "core_attn" in recomputed or self._keeps_projection:
            total += query + 2 * keys
        if model.qk_layernorm:
            # Queries are copied out of the projection where a group has several; keys are normed in place there.
            copied = heads > groups
            total += self._norm(size, tokens * heads, input_kept=not copied)
            total += self._norm(size, tokens * groups, input_kept=True)
        # Rotated queries and keys.
        total += query + keys
        if "core_attn" in recomputed:
            return total
        if self._masked:
            # Keys and values spread over all heads, and the mask as numbers.
            total += (query - keys) + query + tokens * self.stage.run.train.seq_length * element
        if self.stage.run.data.reset_attention_mask and self.device.platform == "cpu":
            # The result of each document, which the projection's input is joined from.
            total += query
        # A fused kernel keeps a number a query; without one (`backend/blocked.py`) all is computed again.
        return total + (tokens * heads * _FP32 if self.device.fused_attention else 0)

    @property
    def _masked(self) -> bool:
        """torch's fused attention keeps documents apart by a mask of all pairs, for which keys are repeated."""
        return (
            self.stage.run.data.reset_attention_mask and self.device.platform == "npu" and self.device.fused_attention
        )

    @property
    def _keeps_projection(self) -> bool:
        """The projected queries, keys and values stay for a view of them: the values', or what the keys' norm saved."""
        # Values are copied to all heads under a mask.
        return self.stage.run.model.qk_layernorm or not self._masked

    def _mlp(self, recomputed: Set[str] = frozenset()) -> int:
        if "mlp" in recomputed:
            # The closing norm is a part of it.
            return self._stream_norm() + self.hidden
        # Both halves of the first projection, and the gate times the other half.
        inner = self.stage.run.model.ffn_hidden_size // self.tensor_ranks
        return self._sub_layer() + 3 * self.tokens * inner * self.element

    def _sub_layer(self) -> int:
        """Norms round attention or MLP, and the input of the first projection."""
        model = self.stage.run.model
        post_norm = self._norm(model.hidden_size, self.local_tokens) if model.sandwich_norm else 0
        return self._stream_norm() + post_norm + self.hidden

    def _stream_norm(self) -> int:
        return self._norm(self.stage.run.model.hidden_size, self.local_tokens, element=self.stream_element)

    def _norm(self, width: int, rows: int, input_kept: bool = False, element: int | None = None) -> int:
        """An RMSNorm over so many rows: its input, and a number a row.

        Args:
            input_kept: the input is part of something that is counted already.
            element: bytes of an element of the input; None: as of the precision.
        """
        return rows * _FP32 + (0 if input_kept else rows * width * (element or self.element))
