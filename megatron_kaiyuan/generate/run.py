"""`kaiyuan generate`: prompts in, texts out, and everything else on standard error."""

from __future__ import annotations

import json
import logging
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.generate.complete import complete
from megatron_kaiyuan.generate.model import Generator
from megatron_kaiyuan.generate.prompts import typed_prompts
from megatron_kaiyuan.generate.sampling import Sampling

log = logging.getLogger(__name__)


def generate(
    generator: Generator, prompts: Sequence[str] | None, sampling: Sampling, seed: int | None, as_json: bool
) -> Iterator[str]:
    """Continue prompts, and yield what is to be printed: each text after its prompt, or one JSON document at the end.

    On a terminal a text is printed here, word for word, as it is written, and not yielded.

    Args:
        prompts: None: lines of standard input, as they are typed.
        seed: of each prompt's tokens, so that no text depends on the prompts before; None: one is drawn.

    Raises:
        UserError: a prompt is empty or too long.
    """
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    about = f"{generator.name}, {str(generator.network.dtype).removeprefix('torch.')} on {generator.network.device}"
    log.info(f"generate: {about}{f', seed {seed}' if sampling.do_sample else ''}")
    results: list[dict[str, Any]] = []
    for prompt in typed_prompts() if prompts is None else prompts:
        torch.manual_seed(seed)
        streamer = None if as_json else _streamer(generator, sampling)
        try:
            completions = complete(generator, prompt, sampling, streamer)
        except UserError as error:
            if prompts is not None or not sys.stdin.isatty():
                raise
            # A person at a terminal types another one.
            log.error(str(error))
            continue
        if as_json:
            results.append({"prompt": prompt, "completions": [asdict(one) for one in completions]})
        elif streamer is None:
            yield from (prompt + one.text for one in completions)
    if as_json:
        found = {"model": generator.name, "seed": seed, **sampling.options(), "results": results}
        yield json.dumps(found, indent=1, ensure_ascii=False)


def _streamer(generator: Generator, sampling: Sampling) -> Any:
    """Where text is shown as it is written: on a terminal, of one sequence."""
    if sampling.num_return_sequences > 1 or not sys.stdout.isatty():
        return None
    from transformers import TextStreamer

    return TextStreamer(generator.tokenizer, skip_special_tokens=True)
