"""A job of one node: nothing that it opens can be reached from other machines, and it resolves no name.

Left to itself torch's store listens on every interface of the host, and gloo on the one that the host's own name leads
to, a name that no one can resolve in many containers. Whoever reaches a rank's store can have the rank run code
(docs/security.md).
"""

from __future__ import annotations

import ipaddress
import socket
from datetime import timedelta

import psutil
import torch

from megatron_kaiyuan.cluster.discover import Rank

ADDRESS = "127.0.0.1"
# What chooses the interface of gloo's and NCCL's sockets. HCCL needs the host's own (megatron_kaiyuan/cluster/hccl.py).
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def is_loopback(address: str) -> bool:
    """Whether an address can be reached by this machine only. No name is resolved."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def hold_store(port: int, world_size: int, timeout: timedelta) -> torch.distributed.TCPStore:
    """A store that this process holds, at 127.0.0.1.

    Args:
        port: 0: a free one.

    Raises:
        OSError: the port is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, port))
        listener.listen(socket.SOMAXCONN)
        port = listener.getsockname()[1]
        return torch.distributed.TCPStore(
            ADDRESS,
            port,
            world_size,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            # The store's from here on, which closes it.
            master_listen_fd=listener.detach(),
        )


def interfaces(who: Rank) -> dict[str, str]:
    """Variables that keep the ranks' own connections inside the node, where all ranks are on one."""
    if who.local_world_size != who.world_size or not is_loopback(who.master_address):
        return {}
    names = [name for name, addresses in psutil.net_if_addrs().items() if ADDRESS in [one.address for one in addresses]]
    return {variable: names[0] for variable in _INTERFACES} if names else {}
