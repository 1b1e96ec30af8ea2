"""How many files this process may have open: the holder of the job's store has two connections to each rank."""

from __future__ import annotations

import resource

from megatron_kaiyuan.errors import UserError

# The start check's and the watchdog's (`start_check.py`, `watchdog.py`).
_CONNECTIONS_A_RANK = 2
# Data, libraries, logs, and connections to other ranks.
_OWN = 512
# Where the hard limit is the kernel's own or none: some programs close every file that they might have open.
_MOST = 1 << 20


def allow_open_files(ranks: int, holds_store: bool) -> str | None:
    """Raise this process's limit of open files as far as it may; its children inherit it.

    Args:
        ranks: of the job.
        holds_store: the store is held by this process.

    Returns:
        What was done, if the store would not have done without it.

    Raises:
        UserError: the hard limit is too low for a store. Without this, connections beyond the limit wait for ever.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = _finite(soft), _finite(hard)
    needed = _CONNECTIONS_A_RANK * ranks + _OWN if holds_store else 0
    if hard < needed:
        raise UserError(
            f"the store of {ranks:,} ranks needs {needed:,} open files, but this process may have {hard:,}; raise the "
            "hard limit on its host (ulimit -Hn, LimitNOFILE of slurmd's service, docker run --ulimit nofile=65536)"
        )
    wanted = min(hard, _MOST)
    if soft >= wanted:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return f"open files: {wanted:,} instead of {soft:,}, for the store of {ranks:,} ranks" if soft < needed else None


def _finite(limit: int) -> int:
    return limit if limit != resource.RLIM_INFINITY else 1 << 62
