"""Whether this host knows its own name, which gloo and torchrun's rendezvous ask for where there are several nodes."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Mapping

from megatron_kaiyuan.cluster.discover import Rank
from megatron_kaiyuan.doctor.examination import Examination

# A name server that does not answer is asked for longer, again and again; a sound one answers in milliseconds.
_SECONDS, _SLOW_SECONDS = 8.0, 2.0
_INTERFACE = "GLOO_SOCKET_IFNAME"


def examine_names(found: Examination, who: Rank, environ: Mapping[str, str] = os.environ) -> None:
    """What the host's own name leads to. A job of one node needs no name; with several nodes gloo listens there."""
    name, began = socket.gethostname(), time.monotonic()
    addresses = _addresses(name)
    seconds = time.monotonic() - began
    found.facts["own_name"] = {"name": name, "addresses": addresses or [], "seconds": round(seconds, 2)}
    several = who.local_world_size != who.world_size
    if not addresses:
        why = f"no answer in {_SECONDS:g} s" if addresses is None else "no address"
        what = f"the host's own name, {name}, is not known here ({why})"
    elif several and all(address.startswith("127.") or address == "::1" for address in addresses):
        what = f"the host's own name, {name}, leads to {addresses[0]}, which other hosts cannot reach"
    elif seconds > _SLOW_SECONDS:
        what = f"the host's own name, {name}, took {seconds:.0f} s to be found"
    else:
        return
    if several and _INTERFACE not in environ:
        found.problem(f"{what}: add it to /etc/hosts with this host's address, or set {_INTERFACE} to its interface")
    elif several:
        found.note(f"{what}; {_INTERFACE} is set, so that gloo does not need it; give --rdzv-endpoint an address")
    else:
        found.note(f"{what}; one node needs no name, several nodes do: then add it to /etc/hosts")


def _addresses(name: str) -> list[str] | None:
    """Addresses that a name resolves to, if any; None: no answer in time, for which the system has no limit."""
    heard: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            answers = []
        heard.put(list(dict.fromkeys(str(answer[4][0]) for answer in answers)))

    threading.Thread(target=ask, name="own name", daemon=True).start()
    try:
        return heard.get(timeout=_SECONDS)
    except queue.Empty:
        return None
