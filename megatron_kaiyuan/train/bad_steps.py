"""Steps whose update must not reach the weights: what makes a step bad, and what the recipe does about it.

Loss and gradient norm are known before the update and equal on every rank, so that all ranks decide alike without
another word between them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_kaiyuan.config import FaultsConfig
from megatron_kaiyuan.errors import UserError

Action = Literal["skip", "rollback", "stop"]

# Of a normal distribution, standard deviation over median absolute deviation.
_DEVIATIONS = 1.4826
# A window of nearly equal losses would make a spike of any rounding error: at least this part of the median counts.
_LEAST_DEVIATION = 0.01


@dataclass(frozen=True)
class StepFigures:
    """What is known of a step before its update.

    Attributes:
        loss: mean over the global batch, nats per token.
        gradient_norm: over all parameters, without the loss scale; NaN after an overflow.
        loss_scale: the scale that the step used.
        overflow: gradients are not finite, or would not be if the device had infinities; the loss scaler (FP16 only)
            has answered by itself.
        phase: index of the phase in which the batch starts.
        tokens: position of the batch; None: not known.
    """

    loss: float
    gradient_norm: float
    loss_scale: float
    overflow: bool
    phase: int
    tokens: int | None = None


@dataclass(frozen=True)
class Fault:
    """Why a step's update is withheld, and what comes next."""

    reason: str
    action: Action


class BadSteps:
    """The judge of steps. A monitor: its window and counters are saved with the run and equal on every rank.

    Args:
        min_loss_scale: where the loss scale of FP16 cannot go lower.
    """

    def __init__(self, faults: FaultsConfig, min_loss_scale: float):
        self._faults, self._min_loss_scale = faults, min_loss_scale
        self._losses: deque[float] = deque(maxlen=faults.spike_window)
        self._phase = -1
        self._skips_in_a_row = 0
        # Not saved: they count what happened since a checkpoint that they would be saved in (`LeftOut` does).
        self._rollbacks, self._rolled_back_to = 0, -1
        self._skipped: Mapping[int, str] = {}

    def judge(self, step: StepFigures) -> Fault | None:
        """The fault of a step, which is counted; None lets the update through, or leaves it to the loss scaler."""
        reason = self._reason(step)
        if reason is not None:
            return self._answer(reason)
        if not step.overflow:
            self._skips_in_a_row = 0
            self._remember(step)
        return None

    def recall(self, rollbacks: Sequence[int], skipped: Mapping[int, str]) -> None:
        """Take over what was answered before an interruption.

        Args:
            rollbacks: steps of the checkpoints that the run went back to, in the order of time.
            skipped: reasons by the position of a batch. It is skipped again, also when nothing is wrong with it now.
        """
        self._rolled_back_to = rollbacks[-1] if rollbacks else -1
        self._rollbacks = len(list(itertools.takewhile(lambda step: step == self._rolled_back_to, reversed(rollbacks))))
        self._skipped = skipped

    def count_rollback(self, step: int) -> None:
        """Count a return to the checkpoint of a step; a newer checkpoint starts the count again.

        Raises:
            UserError: it would be one too many.
        """
        self._rollbacks = self._rollbacks + 1 if step == self._rolled_back_to else 1
        self._rolled_back_to = step
        if self._rollbacks > self._faults.max_rollbacks:
            raise UserError(
                f"the run went back to step {step} {self._faults.max_rollbacks} times and met a bad step again before "
                "the next checkpoint; lower the learning rate, remove that checkpoint to go back further, or raise "
                "faults.max_rollbacks, and start again",
                every_rank=True,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "phase": self._phase, "skips_in_a_row": self._skips_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = deque(map(float, state_dict["losses"]), maxlen=self._faults.spike_window)
        self._phase = int(state_dict["phase"])
        self._skips_in_a_row = int(state_dict["skips_in_a_row"])

    def _reason(self, step: StepFigures) -> str | None:
        if step.tokens is not None and step.tokens in self._skipped:
            return self._skipped[step.tokens]
        if not math.isfinite(step.loss):
            # No loss scale helps a forward pass that has left the range.
            return f"loss is {step.loss}"
        if step.overflow:
            # Above its minimum the scaler lowers the scale, which is no fault.
            collapsed = step.loss_scale <= self._min_loss_scale
            return f"gradients overflow at the smallest loss scale, {step.loss_scale:g}" if collapsed else None
        if not math.isfinite(step.gradient_norm):
            return f"gradient norm is {step.gradient_norm}"
        return self._spike(step)

    def _spike(self, step: StepFigures) -> str | None:
        limit = self._faults.spike_zscore
        full = len(self._losses) == self._faults.spike_window
        # Another phase is other data, whose loss may well be another one.
        if limit is None or not full or step.phase != self._phase:
            return None
        score = robust_zscore(step.loss, self._losses)
        if score <= limit:
            return None
        return f"loss {step.loss:.4f} is {score:.1f} deviations above the median of the last {len(self._losses)} steps"

    def _remember(self, step: StepFigures) -> None:
        """Losses of good steps only: bad ones would make themselves usual."""
        if step.phase != self._phase:
            self._losses.clear()
            self._phase = step.phase
        self._losses.append(step.loss)

    def _answer(self, reason: str) -> Fault:
        if self._faults.on_bad_step != "skip":
            return Fault(reason, self._faults.on_bad_step)
        self._skips_in_a_row += 1
        if self._skips_in_a_row <= self._faults.max_skips_in_a_row:
            return Fault(reason, "skip")
        return Fault(f"{reason}; {self._faults.max_skips_in_a_row} bad steps in a row were skipped before it", "stop")


def robust_zscore(value: float, window: Sequence[float]) -> float:
    """Distance from the median in standard deviations estimated from the median absolute deviation.

    Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993); outliers in the window hardly move it.
    """
    median = statistics.median(window)
    deviation = _DEVIATIONS * statistics.median(abs(one - median) for one in window)
    return (value - median) / max(deviation, _LEAST_DEVIATION * abs(median))
