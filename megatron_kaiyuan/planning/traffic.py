"""Bytes that a rank's memory moves for a micro-batch between the matrix products, which take time at any utilization.

Each operation is counted as fused: it reads its inputs and writes its outputs once. Norms and additions on the residual
stream are done by every tensor-parallel rank on all tokens, unless sequence parallelism shares them out.
"""

from __future__ import annotations

from megatron_kaiyuan.planning.parameters import BYTES, PipelineStage
from megatron_kaiyuan.platform.datasheets import Device

_FP32 = 4
# Read and written, forward and backward, of the residual stream for a layer: a norm (1 + 1, 2 + 1) and an addition
# (2 + 1, 2 + 1) before each of two sub-layers; a norm after it as well where there is one.
_STREAM, _POST_NORMS = 2 * (5 + 6), 2 * 5
# Of the gate and what it multiplies: 2 + 1, 3 + 2; of queries and keys: rotated 1 + 1, 1 + 1, and normed 1 + 1, 2 + 1.
_GATE, _ROTATED, _NORMED = 8, 4, 5
# Of the logits in FP32: largest one, sum, gradient (1, 1, 1 + 1).
_LOGITS = 4
# Of a score of `backend/blocked.py`, forward 2 + 4 + 6 + 8 + 6 + 2 bytes and backward 20 + 8 + 2 + 6 + 12 + 6 + 4,
# written or read in half precision or FP32; of all pairs 9/16 are computed.
_BLOCKED, _COMPUTED_PAIRS = 28 + 58, 9 / 16


def traffic(stage: PipelineStage, device: Device) -> float:
    """Bytes for one micro-batch, forward and backward; what is recomputed is left out."""
    run, ranks = stage.run, stage.run.parallel.tensor_model_parallel_size
    model, tokens = run.model, run.train.micro_batch_size * run.train.seq_length
    element = BYTES[run.train.precision]
    share = ranks if run.parallel.sequence_parallel else 1
    stream_element = _FP32 if model.fp32_residual else element
    stream = (_STREAM + _POST_NORMS * model.sandwich_norm) * model.hidden_size * stream_element / share
    heads = (model.num_attention_heads + model.num_query_groups) * model.kv_channels
    inner = _GATE * model.ffn_hidden_size + (_ROTATED + _NORMED * model.qk_layernorm) * heads
    layer = stream + inner * element / ranks
    if not device.fused_attention:
        layer += _BLOCKED * _COMPUTED_PAIRS * model.num_attention_heads * run.train.seq_length / ranks
    logits = stage.is_last * _LOGITS * model.padded_vocab_size * _FP32 / ranks
    return tokens * (stage.layers * layer + logits)
