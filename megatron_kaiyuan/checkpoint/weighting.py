"""How much each checkpoint counts in an average: what a user asks for, and the weights that follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.optim.average import ema_weights, one_minus_sqrt_weights

Kind = Literal["equal", "ema", "one_minus_sqrt", "weighted"]
Over = Literal["checkpoints", "steps", "tokens"]


@dataclass(frozen=True)
class Source:
    """A checkpoint that is averaged.

    Attributes:
        tokens: its position in the stream; None: its manifest has none.
        seal: of its manifest.
    """

    step: int
    folder: Path
    tokens: int | None
    seal: str


@dataclass(frozen=True)
class Weighting:
    """The kind of an average.

    Attributes:
        over: what the distance between checkpoints is counted in, for EMA and 1 - sqrt.
        decay: of an EMA: by how much the weight of a checkpoint falls over `decay_per`.
        decay_per: checkpoints, steps or tokens, as `over` says.
        coefficients: of the kind `weighted`: one for each checkpoint, ascending or as `--steps` names them. Their sum
            counts as 1.
    """

    kind: Kind = "equal"
    over: Over = "checkpoints"
    decay: float | None = None
    decay_per: float = 1.0
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "weighted") != bool(self.coefficients):
            raise UserError("--coefficients: they and --kind weighted belong together; add or remove one")
        if (self.kind == "ema") != (self.decay is not None):
            raise UserError("--decay: it and --kind ema belong together; add or remove one")
        if self.decay is not None and not 0 < self.decay < 1:
            raise UserError(f"--decay {self.decay}: write a number between 0 and 1, without them")
        if not (math.isfinite(self.decay_per) and self.decay_per > 0):
            raise UserError(f"--decay-per {self.decay_per}: write a number above 0")
        if self.kind != "ema" and self.decay_per != 1:
            raise UserError("--decay-per: only --kind ema has a decay; leave it out")
        if self.kind in ("equal", "weighted") and self.over != "checkpoints":
            raise UserError(f"--over {self.over}: the weights of --kind {self.kind} need no distance; leave it out")
        if wrong := [one for one in self.coefficients if not math.isfinite(one) or one < 0]:
            raise UserError(f"--coefficients: {wrong[0]} is not a number from 0 up; write others")
        if self.coefficients and not 0 < sum(self.coefficients) < math.inf:
            raise UserError("--coefficients: their sum is not a positive number; write others")

    def weights(self, sources: Sequence[Source], named: Sequence[int] = ()) -> list[float]:
        """Return the weight of each source, which are ascending; of any positive sum.

        Args:
            named: their steps in the order of `coefficients`; none: ascending.

        Raises:
            UserError: there are more or fewer coefficients than sources, or a source has no such position.
        """
        if self.kind == "equal":
            return [1.0] * len(sources)
        if self.kind == "weighted":
            return self._coefficients([source.step for source in sources], named)
        positions = self._positions(sources)
        if self.kind == "one_minus_sqrt":
            return one_minus_sqrt_weights(positions)
        assert self.decay is not None
        return ema_weights(positions, self.decay, self.decay_per)

    def as_json(self, sources: Sequence[Source], weights: Sequence[float]) -> dict[str, Any]:
        """Return what the manifest of the average says: the weights have the sum 1."""
        is_ema, total = self.kind == "ema", math.fsum(weights)
        return {
            "kind": self.kind,
            "over": self.over,
            "decay": self.decay,
            "decay_per": self.decay_per if is_ema else None,
            "weights": {str(source.step): weight / total for source, weight in zip(sources, weights, strict=True)},
            "sources": {str(source.step): source.seal for source in sources},
        }

    def _coefficients(self, steps: Sequence[int], named: Sequence[int]) -> list[float]:
        if len(self.coefficients) != len(steps):
            raise UserError(
                f"--coefficients: {len(self.coefficients)} for {len(steps)} checkpoints (steps "
                f"{', '.join(map(str, steps))}); write one for each"
            )
        by_step = dict(zip(named or steps, self.coefficients, strict=True))
        return [by_step[step] for step in steps]

    def _positions(self, sources: Sequence[Source]) -> list[int]:
        if self.over == "checkpoints":
            return list(range(len(sources)))
        if self.over == "steps":
            return [source.step for source in sources]
        tokens = [source.tokens for source in sources if source.tokens is not None]
        if len(tokens) < len(sources) or any(after <= before for before, after in itertools.pairwise(tokens)):
            raise UserError(
                "--over tokens: the manifests of these checkpoints do not have rising positions in tokens; use "
                "--over steps"
            )
        return tokens


def several(kinds: Sequence[str], over: Over, decay: float, decay_per: float) -> list[Weighting]:
    """Return a weighting for each kind by its name; each takes the options that it has.

    Raises:
        UserError: a name is not that of a kind that needs no coefficients.
    """
    with_distance = {"over": over}
    options: dict[str, dict[str, Any]] = {
        "equal": {},
        "ema": {**with_distance, "decay": decay, "decay_per": decay_per},
        "one_minus_sqrt": with_distance,
    }
    if unknown := [kind for kind in kinds if kind not in options]:
        raise UserError(f"--kinds: {excerpt(unknown[0])!r} is not one of {', '.join(options)}; write these")
    return [Weighting(kind, **options[kind]) for kind in dict.fromkeys(kinds)]  # type: ignore[arg-type]
