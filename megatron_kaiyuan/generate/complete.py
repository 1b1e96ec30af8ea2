"""The texts that continue a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.generate.model import Generator
from megatron_kaiyuan.generate.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Completion:
    """One text that continues a prompt.

    Attributes:
        text: without the prompt, and without special tokens.
        ids: the new tokens, the one that ended the text among them.
        finish: "stop": the model ended the text; "length": it had written as many tokens as it may.
    """

    text: str
    ids: list[int]
    finish: str


def complete(
    generator: Generator, prompt: str, sampling: Sampling, streamer: BaseStreamer | None = None
) -> list[Completion]:
    """Continue a prompt by transformers' `generate`, with its cache.

    Tokens are drawn from torch's generator. Where the context ends before `max_new_tokens`, so does the text.

    Args:
        prompt: encoded without special tokens, as the corpora were.
        streamer: is given tokens as they are made; for one sequence only.

    Returns:
        `num_return_sequences` texts.

    Raises:
        UserError: the prompt is empty, or leaves no room for a token.
    """
    tokenizer, network = generator.tokenizer, generator.network
    ids = encode(generator, prompt)
    room = generator.context - len(ids)
    sampling = dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
    ids_bs = torch.tensor([ids], device=network.device)
    found_bs = network.generate(
        ids_bs,
        attention_mask=torch.ones_like(ids_bs),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        streamer=streamer,
        **sampling.options(),
    )
    return [_completion(ids, new, tokenizer) for new in found_bs[:, len(ids) :].tolist()]


def encode(generator: Generator, prompt: str) -> list[int]:
    """Token ids of a prompt.

    Raises:
        UserError: it is empty, or leaves no room for a token.
    """
    ids: list[int] = generator.tokenizer.encode(prompt, add_special_tokens=False)
    if not ids:
        raise UserError("prompt: is empty; write the text to continue")
    if len(ids) >= generator.context:
        raise UserError(
            f"prompt: has {len(ids):,} tokens, and {generator.name} reads {generator.context:,} with those that it "
            "writes; shorten it"
        )
    return ids


def _completion(prompt: Sequence[int], new: list[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    end: Any = tokenizer.eos_token_id
    # After it, there is padding only, beside sequences that are longer.
    ended = end in new
    new = new[: new.index(end) + 1] if ended else new
    return Completion(_text(prompt, new, tokenizer), new, "stop" if ended else "length")


def _text(prompt: Sequence[int], new: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Decode the new tokens after those of the prompt: decoders of words drop the space before a text."""
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *new]))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)
