"""A tokenizer.json read by Hugging Face tokenizers, in a child process first.

The library is written in Rust: a file that it does not expect can end the whole process (a vocabulary with a huge id
is an array of that size, rules within rules overflow the stack), or make it panic, which Python sees as an exception
beside all others. What a child survives, this process reads too. Each content is tried once in a process, and forks
know what has been tried before them.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from megatron_kaiyuan.errors import UserError, excerpt, require

_TEXTS = ["Hello, world", "  two  spaces\n\ttab", "你好，世界。", "3.14 ≠ 22/7 \U0001f600", "a" * 300, "<s> </s>", ""]
_SECONDS = 300.0
# Beyond what this process has, besides 200 bytes for each byte of the file.
_MEMORY = 4 << 30
_PANICKED, _REFUSES_TEXT = 3, 4
_SURVIVED: set[str] = set()


def read_tokenizer(path: Path, content: str) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json.

    Args:
        path: for the message.
        content: the text of the file, or of what has been made of it.

    Raises:
        UserError: the library refuses the file, or ends or panics with it.
    """
    tokenizers = require("tokenizers", extra="tokenizers", purpose="reading a tokenizer.json")
    key = xxhash.xxh3_128_hexdigest(content.encode(errors="surrogatepass"))
    if key not in _SURVIVED:
        if why := _fate(lambda: _use(tokenizers.Tokenizer.from_str(content)), len(content)):
            raise UserError(f"{path}: not a readable tokenizer.json (its library {why}); make or copy it again")
        _SURVIVED.add(key)
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise UserError(f"{path}: not a readable tokenizer.json ({excerpt(error)}); make or copy it again") from error


def is_panic(error: BaseException) -> bool:
    """Whether an exception is what a panic in Rust becomes, which no `except Exception` catches."""
    return type(error).__name__ == "PanicException"


def _use(tokenizer: Any) -> None:
    try:
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in _TEXTS]
        tokenizer.decode_batch(ids, skip_special_tokens=False)
    except Exception:
        os._exit(_REFUSES_TEXT)


def _fate(action: Callable[[], None], size: int) -> str | None:
    """How a child ended that did something; None: it lives, or has an exception that this process will have too."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _end_with(action, size)
    if not _ends_in_time(child):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return f"does not end within {_SECONDS:.0f} s"
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"ends the process: {signal.Signals(os.WTERMSIG(status)).name}"
    return {_PANICKED: "panics", _REFUSES_TEXT: "cannot encode plain text with it"}.get(os.WEXITSTATUS(status))


def _end_with(action: Callable[[], None], size: int) -> None:
    """The life of the child."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory(_MEMORY + 200 * size)
        # The pool of threads that the library may have started is not there after a fork.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        action()
    except BaseException as error:
        os._exit(_PANICKED if is_panic(error) else 0)
    os._exit(0)


def _limit_memory(more: int) -> None:
    statistics = Path("/proc/self/statm")
    if statistics.is_file():
        limit = int(statistics.read_text().split()[0]) * resource.getpagesize() + more
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _ends_in_time(child: int) -> bool:
    try:
        descriptor = os.pidfd_open(child)
    except (AttributeError, OSError):  # another system, or an old kernel: wait without end
        return True
    try:
        # Not select, which knows no descriptor above 1,023.
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return bool(ended.poll(_SECONDS * 1000))
    finally:
        os.close(descriptor)
