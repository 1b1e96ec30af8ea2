"""What lies between the devices of the node."""

from __future__ import annotations

import os
import subprocess

from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context, NotPossible
from megatron_kaiyuan.doctor.acceptance.training import cores, launcher


def exchanges(context: Context) -> str:
    """Two ranks and every exchange of training, in its types (`doctor/exchanges.py`)."""
    if context.ranks < 2:
        raise NotPossible("it needs two devices, and this machine shows one")
    printed = _run(context, 2, "-m", f"{__spec__.parent}.exchange_ranks", context.platform)
    right = [line.removeprefix("right: ") for line in printed.splitlines() if line.startswith("right: ")]
    return right[0]


def doctor(context: Context) -> str:
    """`kaiyuan doctor` on all devices: every exchange, bandwidth, clocks."""
    printed = _run(context, context.ranks, *("-m", "megatron_kaiyuan.cli", "doctor", "--platform", context.platform))
    rows = [line.split() for line in printed.splitlines()]
    measured = [" ".join([row[0], *row[-2:]]) for row in rows if row[:1] in (["all_reduce"], ["point_to_point"])]
    return "; ".join([f"{context.ranks} ranks: no problem found", *measured])


def _run(context: Context, ranks: int, *program: str) -> str:
    """What a program prints on so many ranks.

    Raises:
        CheckFailed: it ended with another code than 0; the message has the problems that it named.
    """
    done = subprocess.run(
        [*launcher(ranks), *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **cores(ranks)},
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        problems = [line for line in done.stdout.splitlines() if line.startswith(("problem: ", "error: "))]
        raise CheckFailed(f"{ranks} ranks: exit code {done.returncode}; {'; '.join(problems[:6])}")
    return done.stdout
