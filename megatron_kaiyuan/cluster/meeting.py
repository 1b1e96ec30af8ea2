"""Where the launchers of several nodes wait for each other, with a line that says for whom.

Torch waits without one: 15 minutes for a name that no server knows yet or a node that does not come, and 5 minutes,
with a trace, for a launcher that has gone although its ranks had come to their end.
"""

from __future__ import annotations

import logging
import socket
import time
from argparse import Namespace

from torch.distributed.elastic.agent.server.api import SimpleElasticAgent, WorkerGroup
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher import api as launcher

from megatron_kaiyuan.cluster.waiting import waiting

# As long as torch's own wait for nodes.
_NAME_SECONDS = 900.0
_LOOK_SECONDS = 2.0
# Ranks end with 0 only after a barrier of their own: launchers have no more than their own end to wait for.
_END_SECONDS = 60.0


class NameNotKnown(Exception):
    """The endpoint's host has no address."""


def wait_for_name(endpoint: str, seconds: float = _NAME_SECONDS) -> None:
    """Return when the host of HOST:PORT has an address; a pod's name may be known only after the pod has started.

    Raises:
        NameNotKnown: it has none after so many seconds.
    """
    host = parse_rendezvous_endpoint(endpoint, 0)[0]
    deadline = time.monotonic() + seconds
    # A thread prints: a silent name server keeps one question waiting for half a minute.
    with waiting(f"the name {host} (--rdzv-endpoint) to lead to an address"):
        while True:
            try:
                socket.getaddrinfo(host, None)
                return
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise NameNotKnown(
                        f"{host} (--rdzv-endpoint) leads to no address after {seconds:g} s ({error.strerror}); correct "
                        "it, or give an address"
                    ) from error
            time.sleep(min(_LOOK_SECONDS, seconds))


def announce_waits(arguments: Namespace) -> None:
    """Let a torchrun, whose parsed arguments are given, print for whom it waits."""
    whom = _others(arguments)
    meet, leave, connect = (
        SimpleElasticAgent._rendezvous,
        SimpleElasticAgent._exit_barrier,
        launcher.rdzv_registry.get_rendezvous_handler,
    )

    def _rendezvous(self: SimpleElasticAgent, worker_group: WorkerGroup) -> None:
        with waiting(whom):
            meet(self, worker_group)

    def _exit_barrier(self: SimpleElasticAgent) -> None:
        self._exit_barrier_timeout = _END_SECONDS
        log = logging.getLogger("torch.distributed.elastic.agent.server.api")
        level = log.level
        # A launcher that has gone by now is not an error of this run, which has come to its end.
        log.setLevel(logging.CRITICAL)
        try:
            with waiting(f"the launchers of the other nodes to end, at most {_END_SECONDS:g} s; the run is at its end"):
                leave(self)
        finally:
            log.setLevel(level)

    def get_rendezvous_handler(parameters):  # type: ignore[no-untyped-def]
        with waiting(whom):
            return connect(parameters)

    SimpleElasticAgent._rendezvous = _rendezvous  # type: ignore[method-assign]
    SimpleElasticAgent._exit_barrier = _exit_barrier  # type: ignore[method-assign]
    launcher.rdzv_registry.get_rendezvous_handler = get_rendezvous_handler


def _others(arguments: Namespace) -> str:
    endpoint, nodes = arguments.rdzv_endpoint, str(arguments.nnodes)
    if arguments.rdzv_backend != "static":
        return f"nodes at {endpoint}, of which {nodes} are wanted"
    if int(arguments.node_rank) == 0:
        return f"the other {int(nodes) - 1} of {nodes} nodes to come to {endpoint}"
    return f"node 0 at {endpoint}, and all of {nodes} nodes"
