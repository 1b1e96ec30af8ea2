"""Batch, warm-up and the like of a first run, from the network and the tokens that there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_kaiyuan.errors import UserError

# A run of fewer steps shows no curve.
_ENOUGH_STEPS = 200


@dataclass(frozen=True)
class Size:
    """Fields of a training recipe."""

    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    precision: str
    peak_lr: float
    final_lr: float
    warmup_tokens: int
    save_every_steps: int
    log_every_steps: int = 10

    @property
    def tokens_per_step(self) -> int:
        return self.seq_length * self.global_batch_size


# As the quickstart trains, and as the report does (launch/recipes/kaiyuan-2b).
SIZES = {
    "kaiyuan-tiny": Size(256, 4, 8, "fp32", 6e-3, 6e-4, 20_000, 50),
    "kaiyuan-2b": Size(4096, 1, 2048, "fp16", 3e-3, 6e-4, 16_777_216_000, 400),
}


def size_for(preset: str, tokens: int) -> Size:
    """What a run of a preset on so many tokens may be; 0 tokens: not known.

    The batch is halved until there are 200 steps, the warm-up takes a twentieth of the tokens at most.

    Raises:
        UserError: the tokens do not fill one sample, or the preset has no size here.
    """
    if preset not in SIZES:
        raise UserError(f"--preset {preset}: is not one of {', '.join(SIZES)}")
    size = SIZES[preset]
    if not tokens:
        return size
    if tokens < size.seq_length:
        raise UserError(f"--corpus: holds {tokens:,} tokens, and one sample of {preset} takes {size.seq_length:,}")
    batch = size.global_batch_size
    while batch > 1 and tokens // (batch * size.seq_length) < _ENOUGH_STEPS:
        batch //= 2
    steps = tokens // (batch * size.seq_length)
    return replace(
        size,
        global_batch_size=batch,
        micro_batch_size=min(size.micro_batch_size, batch),
        warmup_tokens=min(size.warmup_tokens, tokens // 20),
        save_every_steps=max(1, min(size.save_every_steps, steps // 4)),
        log_every_steps=max(1, min(size.log_every_steps, steps // 20)),
    )
