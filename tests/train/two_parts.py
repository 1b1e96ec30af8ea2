"""`kaiyuan` with two optimizers, both AdamW: one of the matrices, one of the norms' gains: COMMAND [ARGUMENT]..."""

from __future__ import annotations

from dataclasses import replace

from megatron_kaiyuan import optimizers, platform
from megatron_kaiyuan.config import RunConfig, WeightKind


def use_two_parts() -> None:
    """For the rest of this process."""
    from megatron_kaiyuan.optim.algorithms import ALGORITHMS

    rules = optimizers.rules

    def with_a_second(run: RunConfig) -> dict[WeightKind, optimizers.UpdateRule]:
        found = rules(run).items()
        return {kind: rule if rule.wd_mult else replace(rule, optimizer="second") for kind, rule in found}

    optimizers.STATES["second"], ALGORITHMS["second"] = optimizers.STATES["adam"], ALGORITHMS["adam"]
    optimizers.rules = with_a_second


if __name__ == "__main__":
    platform.activate("cpu")
    use_two_parts()
    from megatron_kaiyuan import cli

    cli.main()
