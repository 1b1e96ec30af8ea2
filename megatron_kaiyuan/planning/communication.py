"""Bytes that a rank sends in one step: activations, what pipeline stages hand on, gradients and weights.

What megatron-core 0.16 calls for the network of `model/`; `tests/planning/test_communication.py` counts the calls of
real ranks. A ring over n ranks is taken for all collectives (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69,
2009): each rank sends (n - 1) / n of the whole message for a reduce-scatter or an all-gather, and twice that for an
all-reduce, which is one after the other. Point to point a rank sends the message itself. Switches that add need less.

Not counted are a few numbers a step: loss and votes, the norm of the gradients, the loss scaler's flag, the number of
labels that count, the largest logits of QK-clip. A step that is skipped gathers no weights. Context parallelism is
refused by the recipe, so that nothing is sent for it.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.network import embedding_weights, head_weights, layer_weights
from megatron_kaiyuan.planning.parameters import BYTES, PipelineStage, distinct_stages, held

_FP32 = 4


@dataclass(frozen=True)
class Communication:
    """Bytes that a rank sends in one step, by the group that they are sent in.

    Attributes:
        tensor: activations and their gradients, the three numbers a token of the cross-entropy, gradients of norms.
        pipeline: activations to the next stage, their gradients to the one before.
        gradients: over data-parallel ranks, in FP32.
        weights: updated ones, with the distributed optimizer.
    """

    tensor: int
    pipeline: int
    gradients: int
    weights: int

    @property
    def data(self) -> int:
        """All that goes over data-parallel ranks."""
        return self.gradients + self.weights


def communication(stage: PipelineStage) -> Communication:
    """What each rank of a stage sends."""
    # Once a step over data-parallel ranks, with the padding of the distributed optimizer's buffers.
    mine, ranks, is_cut = held(stage), stage.data_parallel_size, stage.run.parallel.use_distributed_optimizer
    return Communication(
        tensor=stage.micro_batches * _activations(stage) + _norm_gradients(stage),
        pipeline=stage.micro_batches * _neighbours(stage),
        gradients=_ring(mine.gradients, ranks, 1 if is_cut else 2),
        weights=_ring(mine.weights, ranks, 1) if is_cut else 0,
    )


def most_sent(run: RunConfig, world_size: int) -> Communication:
    """Of each kind what the ranks send that send most of it; which stage they belong to differs from kind to kind."""
    stages = [astuple(communication(stage)) for stage in distinct_stages(run, world_size)]
    return Communication(*map(max, zip(*stages, strict=True)))


def _ring(message: int, ranks: int, rounds: int) -> int:
    """Bytes of reduce-scatters and all-gathers of a whole message; an all-reduce is two rounds."""
    return rounds * message * (ranks - 1) // ranks


def _activations(stage: PipelineStage) -> int:
    """Over tensor-parallel ranks, for one micro-batch.

    A sub-layer all-reduces its output forward, and the gradient of its input backward. With sequence parallelism it
    gathers its input and scatters its output forward, and does the reverse backward; as the input is not kept whole, it
    is gathered once more for the gradient of the first weight. The head has a first weight only, the embedding only
    an output. What is recomputed is sent again.
    """
    run, ranks = stage.run, stage.run.parallel.tensor_model_parallel_size
    tokens = run.train.micro_batch_size * run.train.seq_length
    elements, element = tokens * run.model.hidden_size, BYTES[run.train.precision]
    gathered_again = int(run.parallel.sequence_parallel)
    recomputed = run.parallel.recomputed
    layer = 2 * (4 + gathered_again) + 4 * ("layer" in recomputed) + 2 * ("mlp" in recomputed)
    sent = _ring(elements * element, ranks, stage.layers * layer + 2 * stage.is_first)
    if stage.is_last:
        head_element = _FP32 if run.model.fp32_head else element
        # The last term: largest logit, sum of the exponentials and the label's logit of each token, forward.
        sent += _ring(elements * head_element, ranks, 2 + gathered_again) + _ring(tokens * _FP32, ranks, 3 * 2)
    return sent


def _norm_gradients(stage: PipelineStage) -> int:
    """An all-reduce of the gradients of norms of which tensor-parallel ranks see other tokens, or other heads."""
    model, parallel = stage.run.model, stage.run.parallel
    gains = [weight for weight in layer_weights(model) if not weight.is_matrix] * stage.layers
    gains += [weight for weight in embedding_weights(model) if not weight.is_matrix and stage.is_first]
    gains += [weight for weight in head_weights(model) if not weight.is_matrix and stage.is_last]
    # Those of a head's size see other heads, those of the stream's other tokens.
    elements = sum(gain.size for gain in gains if parallel.sequence_parallel or gain.size != model.hidden_size)
    return _ring(elements * _FP32, parallel.tensor_model_parallel_size, 2)


def _neighbours(stage: PipelineStage) -> int:
    """To the stages before and after, for one micro-batch, from each chunk.

    The first chunk of the network sends no gradient on, the last one no activations. Without sequence parallelism every
    tensor-parallel rank sends all of them.
    """
    run = stage.run
    share = run.parallel.tensor_model_parallel_size if run.parallel.sequence_parallel else 1
    element = _FP32 if run.model.fp32_residual else BYTES[run.train.precision]
    stream = run.train.micro_batch_size * run.train.seq_length * run.model.hidden_size * element // share
    return (2 * stage.chunks - stage.is_first - stage.is_last) * stream
