"""Which ranks of a hanging job the others wait for, from what all ranks last reported of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

# Ranks that a message names; a job may lose thousands at once.
_NAMED = 16


@dataclass(frozen=True)
class Alive:
    """What a rank last reported of itself.

    Attributes:
        count: rises with each report.
        beats: how far its main thread has come.
        waiting: its main thread is inside a call of torch.distributed.
        where: the innermost line of its main thread.
        born: in clock ticks since boot, so that a process id is not mistaken for another process's.
    """

    count: int
    beats: int
    waiting: bool
    where: str
    host: str
    process: int
    born: str


@dataclass(frozen=True)
class Verdict:
    """Why a hanging job is ended; equal on all ranks that read it from the store.

    Attributes:
        message: for people, one line.
        silent: ranks that stopped reporting.
        accused: what is known of the ranks that the message blames, silent ones included; those that never reported
            are missing.
        by: the rank that gave it, which prints it; None: this rank alone, without the store.
    """

    message: str
    silent: list[int] = field(default_factory=list)
    accused: dict[int, Alive] = field(default_factory=dict)
    by: int | None = None

    @property
    def hosts(self) -> list[str]:
        """Return the hosts of the accused, each once, in the order of their ranks."""
        return list(dict.fromkeys(one.host for _, one in sorted(self.accused.items())))

    def encoded(self) -> str:
        """Return the JSON that `decoded` reads."""
        return json.dumps(asdict(self))


def decoded(text: str | bytes) -> Verdict:
    """Return the verdict that `Verdict.encoded` wrote."""
    content = json.loads(text)
    accused = {int(rank): Alive(**one) for rank, one in content["accused"].items()}
    return Verdict(content["message"], content["silent"], accused, content["by"])


def judge(said: Mapping[int, Alive], silent: Sequence[int], master: str) -> Verdict:
    """Find the ranks that the others wait for.

    Args:
        said: the last report of each rank; empty if the store does not answer.
        silent: ranks without a new report between two looks.
        master: where the store listens.
    """
    if not said:
        return Verdict(f"the store at {master} does not answer, which rank 0 or its launcher holds")
    if silent:
        lines = [f"rank {rank} does not answer{_address(said.get(rank))}" for rank in silent]
        return Verdict(_joined(lines), list(silent), {rank: said[rank] for rank in silent if rank in said})
    guilty = {rank: one for rank, one in said.items() if not one.waiting}
    if len(guilty) == len(said):
        fewest = min(one.beats for one in said.values())
        guilty = {rank: one for rank, one in said.items() if one.beats == fewest}
    if not guilty or len(guilty) == len(said):
        return Verdict("none stands out, as the stacks of all show")
    lines = [f"rank {rank} is at {one.where}{_address(one)}" for rank, one in guilty.items()]
    return Verdict(_joined(lines), [], guilty)


def _joined(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return "; ".join(lines[:_NAMED]) + more


def _address(one: Alive | None) -> str:
    return f" (host {one.host}, process {one.process})" if one else ""


def silent_between(before: Mapping[int, Alive], now: Mapping[int, Alive], ranks: Iterable[int]) -> list[int]:
    """Return the ranks that never reported, or not again between two looks."""
    return [rank for rank in ranks if rank not in now or before.get(rank) == now[rank]]
