"""The findings of all ranks as a page for a person or as JSON for a program."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_kaiyuan.cluster import Rank
from megatron_kaiyuan.cluster.rank_list import ranks_in_words
from megatron_kaiyuan.doctor.examination import Examination

_GIB = 1 << 30
_HOSTS = 16


def print_report(everybody: Sequence[Examination], who: Rank, as_json: bool) -> int:
    """Print the report.

    Args:
        everybody: by rank, or only this rank's.

    Returns:
        The exit code: 1 when there is a problem.
    """
    findings = merged(everybody, who)
    problems = [one["message"] for one in findings if one["level"] == "problem"]
    if as_json:
        content = {"ok": not problems, "findings": findings, "ranks": [one.facts for one in everybody]}
        print(json.dumps(content, indent=1), flush=True)
    else:
        lines = [*_facts(everybody), *(f"{one['level']}: {one['message']}" for one in findings)]
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "no problem found"
        print(*lines, f"doctor: {count}", sep="\n", flush=True)
    return 1 if problems else 0


def merged(everybody: Sequence[Examination], who: Rank) -> list[dict[str, Any]]:
    """Each finding once, problems first, with the ranks that share it."""
    holders: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, one in enumerate(everybody):
        for finding in one.findings:
            holders[finding.level, finding.message].append(who.rank if len(everybody) == 1 else index)
    found = []
    for (level, message), ranks in sorted(holders.items(), key=lambda item: item[0][0] != "problem"):
        where = "" if len(ranks) == who.world_size else f" ({ranks_in_words(ranks)})"
        found.append({"level": level, "message": message + where, "ranks": ranks})
    return found


def _facts(everybody: Sequence[Examination]) -> Iterator[str]:
    facts = everybody[0].facts
    by_host = {one.facts["machine"]["host"]: one.facts["machine"] for one in everybody if "machine" in one.facts}
    for host, machine in list(by_host.items())[:_HOSTS]:
        yield _line("machine", f"{host}: {machine['cores']} cores, {_gib(machine['memory_bytes'])} memory")
    if len(by_host) > _HOSTS:
        yield _line("", f"and {len(by_host) - _HOSTS} more hosts")
    yield from _software(facts)
    limits = facts.get("limits", {})
    locked = limits.get("locked_memory_bytes")
    yield _line(
        "limits",
        f"{limits.get('open_files') or 'any number of'} open files, "
        f"{'any amount' if locked is None else f'{locked >> 10} KiB'} of locked memory",
    )
    if disk := facts.get("disk"):
        shared = facts.get("shared_memory")
        room = f", {_gib(shared['free_bytes'])} in /dev/shm" if shared else ""
        yield _line("disk", f"{_gib(disk['free_bytes'])} free at {disk['folder']}{room}")
    yield from _links(facts)


def _software(facts: dict[str, Any]) -> Iterator[str]:
    if platform := facts.get("platform"):
        devices = platform["devices"]
        named = "; ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices)) or "none"
        yield _line("devices", f"{named}: platform {platform['name']}, {platform['backend']} between ranks")
    if trial := facts.get("trial"):
        products = " and ".join(trial.get("product_errors", {}))
        yield _line(
            "trial",
            f"collectives on one process, products in {products}, overflows, AdamW by {trial.get('adamw', 'nothing')}: "
            f"{trial.get('seconds', 0):.1f} s",
        )
    software = facts.get("software", {})
    main = [f"{name} {software[name]}" for name in ("python", "torch", "megatron-core", "numpy") if name in software]
    yield _line("software", ", ".join(main))
    if kernels := facts.get("kernels"):
        there = [name for name, is_there in kernels.items() if is_there]
        yield _line("kernels", ", ".join(there) or "torch's own")
        # What a run would use; its table at the start has every operation.
        yield from (_line("", f"{op}: {why}") for op, why in facts.get("platform", {}).get("findings", {}).items())
    launcher = facts["launcher"]
    ranks = launcher["world_size"]
    how = f"{launcher['name']}, {ranks} ranks" if ranks > 1 else "none, one process"
    yield _line("launcher", f"{how}; found here: {', '.join(launcher['available']) or 'none'}")


def _links(facts: dict[str, Any]) -> Iterator[str]:
    if clocks := facts.get("clocks"):
        ahead, give_or_take = clocks["seconds_ahead_of_rank_0"] * 1e3, clocks["uncertainty_seconds"] * 1e3
        yield _line("clocks", f"{abs(ahead):.2f} ms apart at most, give or take {give_or_take:.2f} ms")
    measured = facts.get("collectives")
    if measured is None:
        if facts["launcher"]["world_size"] == 1:
            yield _line("collectives", "not measured with one process; start doctor as you start training")
        return
    if "exchanges" in facts:
        yield _line("exchanges", f"{len(facts['exchanges'])} that training makes are right, of {_types(facts)}")
    large = f"{measured['large_bytes'] >> 20} MiB"
    yield _line(
        "collectives", f"{measured['backend']}, {measured['ranks']} ranks, float32, bus bandwidth as in nccl-tests"
    )
    yield _line("", f"{'operation':<16}{'latency':>12}{'1 MiB':>14}{large:>14}")
    for row in measured["operations"]:
        yield _line(
            "",
            f"{row['operation']:<16}{row['latency_us']:>9.0f} us{row['gb_per_s_1mib']:>9.2f} GB/s"
            f"{row['gb_per_s_large']:>9.2f} GB/s",
        )


def _types(facts: dict[str, Any]) -> str:
    """The types of elements that were exchanged."""
    return ", ".join(dict.fromkeys(name.rpartition(" of ")[2] for name in facts["exchanges"]))


def _line(part: str, text: str) -> str:
    return f"{part:<13}{text}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
