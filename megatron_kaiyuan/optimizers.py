"""The optimizers on one page, without torch: which weights each one updates, how fast, and what it keeps for them.

Parameter groups, sharded state, checkpoints, planned memory and the monitor's updates follow from these tables. An
optimizer that is added to `optim/` is added here, in `optim/algorithms.py`, and nowhere else by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_kaiyuan.config import RunConfig, WeightKind
from megatron_kaiyuan.network import layer_weights, outer_weights

# Tensors that an optimizer keeps for a parameter besides the main weights: FP32, of the parameter's shape. Checkpoints
# have them under these names.
STATES: dict[str, tuple[str, ...]] = {"adam": ("exp_avg", "exp_avg_sq")}


@dataclass(frozen=True)
class UpdateRule:
    """How the weights of a kind are updated.

    Attributes:
        optimizer: a name of `STATES`.
        lr_mult: multiple of the schedule's learning rate.
        wd_mult: multiple of the recipe's weight decay.
        eps_mult: multiple of the recipe's epsilon.
    """

    optimizer: str
    lr_mult: float = 1.0
    wd_mult: float = 1.0
    eps_mult: float = 1.0


@dataclass(frozen=True)
class ParameterGroup:
    """The kinds of weights that share a rule, and so a parameter group."""

    rule: UpdateRule
    kinds: tuple[WeightKind, ...]


def rules(run: RunConfig) -> dict[WeightKind, UpdateRule]:
    """Return the rule of each kind of weight that the network has, matrices first."""
    options = run.optimizer
    weights = [*layer_weights(run.model), *outer_weights(run.model)]
    return {
        weight.kind: UpdateRule(
            optimizer="adam",
            lr_mult=_learning_rate(run, weight.kind),
            wd_mult=options.wd_mult.get(weight.kind, 1.0 if weight.is_matrix else 0.0),
        )
        for weight in sorted(weights, key=lambda weight: not weight.is_matrix)
    }


def _learning_rate(run: RunConfig, kind: WeightKind) -> float:
    if run.optimizer.decoupled_lr is not None and kind in ("embedding", "head"):
        return run.optimizer.decoupled_lr / max(phase.peak_lr for phase in run.data.phases)
    return run.optimizer.lr_mult.get(kind, 1.0)


def parameter_groups(run: RunConfig) -> Iterator[tuple[str, list[ParameterGroup]]]:
    """Yield each optimizer that the run needs with its parameter groups: one for each rule, the same on every rank."""
    by_rule: dict[UpdateRule, list[WeightKind]] = {}
    for kind, rule in rules(run).items():
        by_rule.setdefault(rule, []).append(kind)
    for optimizer in dict.fromkeys(rule.optimizer for rule in by_rule):
        yield (
            optimizer,
            [ParameterGroup(rule, (*kinds,)) for rule, kinds in by_rule.items() if rule.optimizer == optimizer],
        )
