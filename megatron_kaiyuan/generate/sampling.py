"""How text is sampled: transformers' options, under its names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megatron_kaiyuan.errors import UserError, require_between

# Options that change nothing unless tokens are drawn.
_OF_DRAWING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Sampling:
    """What transformers' `generate` is called with; None: its own default.

    Attributes:
        max_new_tokens: after the prompt.
        do_sample: draw tokens; else the most probable one is taken.
        num_return_sequences: texts for each prompt.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        """Refuse what transformers would refuse in several lines, or would ignore with a warning.

        Raises:
            UserError: naming the option of the command line.
        """
        for name, least, most in (
            ("max_new_tokens", 1, 1 << 24),
            ("num_return_sequences", 1, 1 << 16),
            ("temperature", 1e-4, 1e4),
            ("top_k", 1, 1 << 30),
            ("top_p", 1e-9, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 1e-4, 1e4),
        ):
            if (value := getattr(self, name)) is not None:
                require_between(f"--{name.replace('_', '-')}", value, least, most)
        given = [name for name in _OF_DRAWING if getattr(self, name) is not None]
        if given and not self.do_sample:
            raise UserError(f"--{given[0].replace('_', '-')}: is for drawn tokens; add --do-sample, or leave it out")
        if self.num_return_sequences > 1 and not self.do_sample:
            raise UserError("--num-return-sequences: they would all be the same text; add --do-sample, or leave it out")

    def options(self) -> dict[str, Any]:
        """Those that are set, for `generate`."""
        return {name: value for name, value in asdict(self).items() if value is not None}
