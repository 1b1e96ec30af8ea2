"""torchrun's rendezvous for one launcher, which has no one to meet: a store on the loopback interface."""

from __future__ import annotations

import socket
from argparse import Namespace
from datetime import timedelta

from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from megatron_kaiyuan.cluster.loopback import ADDRESS, hold_store

_BACKEND = "kaiyuan-loopback"
_TIMEOUT = timedelta(minutes=10)


class Rendezvous(RendezvousHandler):
    """A new store for each start of the workers."""

    def __init__(self, run_id: str):
        self._run_id = run_id

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return _BACKEND

    def get_run_id(self) -> str:
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        store = hold_store(0, 1, _TIMEOUT)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(ADDRESS, store.port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True


def stay_inside(arguments: Namespace) -> None:
    """Let a `--standalone` torchrun, whose parsed arguments are given, open its store to this machine only."""
    if _BACKEND not in rendezvous_handler_registry._registry:
        rendezvous_handler_registry.register(_BACKEND, _create)
    arguments.standalone = False
    arguments.rdzv_backend, arguments.rdzv_id, arguments.local_addr = _BACKEND, "none", ADDRESS
    # Elastic asks for the full host name, for its events only; where no one knows it, that takes a resolver's time-out.
    socket.getfqdn = lambda name="": name or socket.gethostname()


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return Rendezvous(parameters.run_id)
