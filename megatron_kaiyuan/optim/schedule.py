"""The learning rate as a pure function of the token position: nothing to save, nothing to restore.

Warm-up over the first tokens of the run, then each phase at its own peak, then, where the phase asks for
it, a decay over its last part. The shape 1 - sqrt is that of the curriculum paper (arXiv 2511.18903).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

from megatron_kaiyuan.config import PhaseConfig

_DECAY_SHAPES = {
    "one_minus_sqrt": lambda progress: 1.0 - math.sqrt(progress),
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


class Schedule:
    """Learning rate at any token position of a run.

    Args:
        phases: the phases in order.
        phase_tokens: tokens that each phase holds.
        warmup_tokens: length of the linear warm-up from zero.
        schedule_tokens: length of the whole schedule, see `OptimizerConfig`; None: of the phases.

    Attributes:
        starts: where each phase of the schedule begins, and where the last one ends.
    """

    def __init__(
        self,
        phases: Sequence[PhaseConfig],
        phase_tokens: Sequence[int],
        warmup_tokens: int,
        schedule_tokens: int | None = None,
    ):
        self._phases = list(phases)
        self._tokens = list(phase_tokens) if schedule_tokens is None else _cut(phase_tokens, schedule_tokens)
        self.starts = [0, *itertools.accumulate(self._tokens)]
        self._warmup_tokens = warmup_tokens

    def learning_rate(self, step_end: int) -> float:
        """Learning rate of the step whose last token is the one before offset `step_end`; constant after the end."""
        step_end = min(step_end, self.starts[-1])
        index = min(max(bisect.bisect_left(self.starts, step_end) - 1, 0), len(self._phases) - 1)
        rate = self._phase_rate(index, step_end - self.starts[index])
        return rate * min(1.0, step_end / self._warmup_tokens) if self._warmup_tokens else rate

    def _phase_rate(self, index: int, tokens_into_phase: int) -> float:
        phase, tokens = self._phases[index], self._tokens[index]
        decay_tokens = phase.decay_fraction * tokens
        if phase.final_lr is None or decay_tokens == 0:
            return phase.peak_lr
        progress = (tokens_into_phase - (tokens - decay_tokens)) / decay_tokens
        share = _DECAY_SHAPES[phase.decay_shape](min(max(progress, 0.0), 1.0))
        return phase.final_lr + (phase.peak_lr - phase.final_lr) * share


def _cut(phase_tokens: Sequence[int], total: int) -> list[int]:
    """Lengths of the phases in a schedule of `total` tokens: the last ones get shorter, or the last one longer."""
    starts = itertools.accumulate(phase_tokens[:-1], initial=0)
    lengths = [min(tokens, max(total - start, 0)) for start, tokens in zip(starts, phase_tokens, strict=True)]
    lengths[-1] += max(total - sum(phase_tokens), 0)
    return lengths
