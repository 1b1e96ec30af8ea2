"""How far a run goes and its learning rate on the way; needs neither torch nor a device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan.config import RunConfig, check_world_size, load_run
from megatron_kaiyuan.data.held_out import open_held_out, trained_on
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.text_bytes import text_bytes
from megatron_kaiyuan.optim.schedule import Schedule
from megatron_kaiyuan.train.run_folder import require_run_folder
from megatron_kaiyuan.train.sensible import odd_plan, require_reached_peak

log = logging.getLogger(__name__)

# Vocabularies are rounded up so that they can be cut and multiplied fast; none needs more than this.
_LARGEST_PADDING = 1024


def count_steps(run: RunConfig, stream: TokenStream) -> int:
    """Whole global batches in the tokens to train on; the rest of the stream is left unread.

    Raises:
        UserError: the recipe asks for more tokens than there are, there is not one batch of them, or its samples are
            not the packs of packed phases.
    """
    length = pack_length(stream)
    if length not in (None, run.train.seq_length):
        raise UserError(
            f"train.seq_length: {run.train.seq_length}, but the phases are packed for {length} tokens; set it to "
            f"{length}, or build them again with pack: {run.train.seq_length}"
        )
    available = _available_tokens(stream)
    wanted = available if run.train.train_tokens is None else run.train.train_tokens
    if wanted > available:
        raise UserError(f"train.train_tokens: {wanted:,} asked for, the phases hold {available:,}; ask for less")
    steps = wanted // run.train.tokens_per_step
    if steps == 0 and run.train.train_tokens != 0:
        raise UserError(
            f"train.global_batch_size {run.train.global_batch_size} x seq_length {run.train.seq_length} is more than "
            f"the {wanted:,} tokens to train on; make the batch smaller"
        )
    return steps


def last_position(run: RunConfig, stream: TokenStream, position: int) -> int:
    """Where the last step ends, for a run that is at `position`: batches before it may have had another size."""
    available = _available_tokens(stream)
    wanted = available if run.train.train_tokens is None else run.train.train_tokens
    return position + max(wanted - position, 0) // run.train.tokens_per_step * run.train.tokens_per_step


def make_schedule(run: RunConfig, stream: TokenStream) -> Schedule:
    """The learning rate over the whole stream: where a run stops (`train.train_tokens`) does not bend it.

    Raises:
        UserError: it would end before its warm-up does, or come near none of its peaks.
    """
    phase_tokens = [phase.tokens for phase in stream.phases]
    options = run.optimizer
    length = options.schedule_tokens or sum(phase_tokens)
    if options.warmup_tokens > length:
        raise UserError(
            f"optimizer.warmup_tokens: {options.warmup_tokens:,}, but the whole schedule has {length:,} tokens, so the "
            "learning rate would never reach its peak; make the warm-up shorter"
        )
    schedule = Schedule(run.data.phases, phase_tokens, options.warmup_tokens, options.schedule_tokens)
    require_reached_peak(run, schedule)
    return schedule


def warnings(run: RunConfig, stream: TokenStream, schedule: Schedule) -> list[str]:
    """What a start says before it begins: a line each."""
    steps = count_steps(run, stream)
    odd = odd_plan(run, schedule, steps, last_position(run, stream, 0))
    return [*filter(None, [check_vocabulary(run, stream)]), *odd]


def pack_length(stream: TokenStream) -> int | None:
    """Tokens in a pack of packed phases; None: their documents follow each other without a gap.

    Raises:
        UserError: phases are packed for different lengths, or only some of them are.
    """
    lengths = [(phase.manifest.get("packing") or {}).get("seq_length") for phase in stream.phases]
    for phase, length in zip(stream.phases, lengths, strict=True):
        if length != lengths[0]:
            first = stream.phases[0].name
            raise UserError(
                f"data.phases: {first} is built with pack: {lengths[0]}, {phase.name} with pack: {length}; "
                "build all phases of a run with one"
            )
    return lengths[0]


def check_vocabulary(run: RunConfig, stream: TokenStream) -> str | None:
    """Compare the model's vocabulary with the tokenizer's, where that is known.

    Returns:
        A warning where the model has more ids than rounding up to a multiple of 1,024 explains; else None.

    Raises:
        UserError: it has fewer.
    """
    if stream.tokenizer is None:
        return None
    size = stream.tokenizer["vocab_size"]
    if run.model.vocab_size < size:
        raise UserError(
            f"model.vocab_size {run.model.vocab_size:,} is below the {size:,} ids of the tokenizer that made the "
            f"corpora; set it to {size}"
        )
    if run.model.vocab_size <= -(-size // _LARGEST_PADDING) * _LARGEST_PADDING:
        return None
    return (
        f"model.vocab_size {run.model.vocab_size:,} is far above the {size:,} ids of the tokenizer that made the "
        "corpora: the other rows are never trained and cost memory; is it that of another tokenizer?"
    )


def _available_tokens(stream: TokenStream) -> int:
    # The last label of a batch is the token after it; packs have none there.
    return stream.tokens - (pack_length(stream) is None)


def check_training(recipe: Path, overrides: Sequence[str], world_size: int) -> str:
    """Check a recipe and its data for a number of processes, before any of them is started.

    Returns:
        A one-line summary.

    Raises:
        UserError: what training would refuse at its start.
    """
    run = load_run(recipe, overrides)
    check_world_size(run, world_size)
    if run.init_from is not None and not run.init_from.is_dir():
        raise UserError(
            f"init_from: {run.init_from} is no folder; name a checkpoint's, an exported one, or a Qwen3 folder"
        )
    require_run_folder(run.run_dir)
    # Headers and samples only: the ranks will share the rest, which may take one process minutes.
    stream = TokenStream([phase.path for phase in run.data.phases], run.model.vocab_size, check=None)
    steps = count_steps(run, stream)
    held_out = open_held_out(run.validation.corpora, stream)
    for corpus in held_out.values():
        text_bytes(corpus)
    for warning in [*warnings(run, stream, make_schedule(run, stream)), *trained_on(held_out, stream)]:
        log.warning(warning)
    return f"check: {steps:,} steps of {run.train.tokens_per_step:,} tokens, {world_size} processes"
