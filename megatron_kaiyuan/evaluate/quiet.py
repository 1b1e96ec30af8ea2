"""lm-eval without its notes, and without progress bars outside a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from megatron_kaiyuan.logs import keep_stream


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress bars appear on a terminal only, for each redraw is a line in a log."""
    from datasets.utils import logging as datasets_logging

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets_logging.disable_progress_bar()
    try:
        with contextlib.ExitStack() as stack:
            if not sys.stderr.isatty():
                stack.enter_context(keep_stream())
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        logger.setLevel(level)
        datasets_logging.enable_progress_bar()
