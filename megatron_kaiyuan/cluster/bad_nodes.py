"""The nodes that a job has found bad, in the run folder: what starts the job again keeps away from them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json, write_json
from megatron_kaiyuan.forms import Form, require_form

BAD_NODES = "bad_nodes.json"
_HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,255}$")]


def node_name() -> str:
    """Return the name by which the scheduler knows this node; its own host name where none says it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class BadNodes(Form):
    """What the file holds.

    Attributes:
        hosts: names by which the scheduler knows them, where there is one.
        why: one line.
        time: seconds since 1970.
    """

    hosts: list[_HostName]
    why: str
    time: float


def write_bad_nodes(run_dir: Path, hosts: Sequence[str], why: str) -> bool:
    """Name nodes in `run_dir`, in place of those that were named before; whether that could be written.

    Nothing is raised: the job is about to end for another reason.
    """
    try:
        write_json(run_dir / BAD_NODES, {"hosts": list(dict.fromkeys(hosts)), "why": why, "time": time.time()})
    except (OSError, UserError):
        return False
    return True


def read_bad_nodes(run_dir: Path) -> BadNodes | None:
    """Return what `write_bad_nodes` has written; None: nothing, or nothing that can be used."""
    try:
        return require_form(run_dir / BAD_NODES, read_json(run_dir / BAD_NODES, "bad nodes"), BadNodes)
    except (OSError, UserError):
        return None
