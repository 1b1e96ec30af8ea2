"""lm-eval on tasks in a local folder, without network and without a trace outside that folder."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kaiyuan.environment import environment
from megatron_kaiyuan.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_CACHES = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "LM_HARNESS_CACHE_PATH")


def offline(cache: Path) -> contextlib.AbstractContextManager[None]:
    """Hugging Face's libraries stay off the network and keep their caches in `cache`.

    They read the environment once, when first imported: enter this before that.
    """
    return environment({**dict.fromkeys(_OFFLINE, "1"), **dict.fromkeys(_CACHES, str(cache.resolve()))})


def run_tasks(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    tasks: Sequence[str],
    max_length: int,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Run lm-eval's `simple_evaluate` on tasks that `write_tasks` made.

    Args:
        network: in evaluation mode, on its device.
        max_length: tokens of context at most, as in training; longer documents are rolled.

    Returns:
        By task name, the metrics as plain floats: bits_per_byte, or acc and acc_norm.

    Raises:
        UserError: lm-eval is not installed.
    """
    lm_eval = require("lm_eval", extra="eval", purpose="the evaluation")
    manager = require("lm_eval.tasks", extra="eval", purpose="the evaluation").TaskManager
    models = require("lm_eval.models.huggingface", extra="eval", purpose="the evaluation")
    with _quiet():
        model = models.HFLM(
            pretrained=network,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            trust_remote_code=False,
            # Documents are parted by end-of-text in training: each is scored as following one.
            prefix_token_id=tokenizer.eos_token_id,
        )
        results: Any = lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            log_samples=False,
        )
    return {name: _metrics(results["results"][name]) for name in tasks}


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """lm-eval's keys are `metric,filter`; the standard errors need bootstraps, which are off."""
    return {
        key.partition(",")[0]: float(value)
        for key, value in row.items()
        if "," in key and "_stderr" not in key and isinstance(value, float | int)
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's notes; its progress bars only where a person watches, for each redraw is a line in a log."""
    from datasets.utils import logging as datasets_logging

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets_logging.disable_progress_bar()
    try:
        with contextlib.ExitStack() as stack:
            if not sys.stderr.isatty():
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        logger.setLevel(level)
        datasets_logging.enable_progress_bar()
