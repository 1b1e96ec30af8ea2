"""The verdict of the quick examination: which nodes are bad, printed by rank 0 and kept for the launcher."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan.cluster import Rank
from megatron_kaiyuan.cluster.bad_nodes import write_bad_nodes
from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.doctor.report import merged
from megatron_kaiyuan.exit_codes import BAD_NODE, FAILED, FINISHED

log = logging.getLogger(__name__)


def judge(everybody: Sequence[Examination], hosts: Sequence[str], who: Rank, run_dir: Path, began: float) -> int:
    """Print what all ranks found, name the bad nodes in RUN_DIR/bad_nodes.json, and return the exit code of all.

    Args:
        everybody: by rank, as `hosts`.
        began: when the examination did, by `time.monotonic`.
    """
    findings = merged(everybody, who)
    problems = [one["message"] for one in findings if one["level"] == "problem"]
    bad = bad_nodes(everybody, hosts)
    for message in [*problems, *([] if problems else [one["message"] for one in findings])]:
        log.info(f"preflight: {message}")
    seconds = time.monotonic() - began
    if bad:
        why = _of_nodes(everybody, hosts)[bad[0]][0]
        write_bad_nodes(run_dir, bad, f"preflight: {why}")
        log.error(f"preflight: bad nodes {','.join(bad)}: {why}")
        return BAD_NODE
    if problems:
        log.error(f"preflight: {len(problems)} problems that no other node would mend; kaiyuan doctor has more")
        return FAILED
    log.info(f"preflight: {who.world_size} ranks on {len(set(hosts))} nodes are in order, {seconds:.1f} s")
    return FINISHED


def bad_nodes(everybody: Sequence[Examination], hosts: Sequence[str]) -> list[str]:
    """Return the nodes with a problem of their own; none where more than half of several nodes have one.

    Args:
        everybody: by rank, as `hosts`.
    """
    bad = [*_of_nodes(everybody, hosts)]
    nodes = len(set(hosts))
    return [] if nodes > 1 and 2 * len(bad) > nodes else bad


def _of_nodes(everybody: Sequence[Examination], hosts: Sequence[str]) -> dict[str, list[str]]:
    """Return the problems of nodes' own, by node, in the order of their first ranks."""
    found: dict[str, list[str]] = {}
    for rank, (one, host) in enumerate(zip(everybody, hosts, strict=True)):
        for finding in one.findings:
            if finding.of_node:
                found.setdefault(host, []).append(f"{finding.message} (rank {rank})")
    return found


def silent() -> Examination:
    """Return what is held against a rank that gave nothing."""
    found = Examination()
    found.problem("device: this rank did not answer in time: its device or its process hangs", of_node=True)
    return found
