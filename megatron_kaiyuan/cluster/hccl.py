"""What HCCL will make of this host's environment: the table of ranks, the interface, the ports.

HCCL itself reports a mistake there at the first collective, after the whole start, often as a time-out of another rank.
Sources: HCCL's documentation of RANK_TABLE_FILE, HCCL_IF_IP, HCCL_SOCKET_IFNAME and HCCL_IF_BASE_PORT, and torch_npu's
ProcessGroupHCCL.cpp and HCCLUtils.cpp. Needs no torch; the launch scripts run it:

    python -m megatron_kaiyuan.cluster.hccl WORLD_SIZE NODES
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from megatron_kaiyuan import logs
from megatron_kaiyuan.errors import UserError, describe, excerpt

log = logging.getLogger("megatron_kaiyuan.cluster.hccl")

_TABLE = "RANK_TABLE_FILE"
# HCCL takes this many from HCCL_IF_BASE_PORT on, by default from 60000.
_PORTS, _FIRST_PORT = 32, 60000
# Time limits in seconds, and buffers in MB: HCCL says what is wrong with one at the first collective.
_WHOLE_NUMBERS = ("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_BUFFSIZE")


def notices(world_size: int, nodes: int) -> list[str]:
    """Lines on what works, but perhaps not as intended.

    Raises:
        UserError: the job cannot work: the table of ranks is another job's, or a value is none that HCCL takes.
    """
    _check_numbers()
    found = [_table_notice(world_size), _interface_notice() if nodes > 1 else None, _port_notice()]
    return [line for line in found if line]


def _check_numbers() -> None:
    for name in _WHOLE_NUMBERS:
        text = os.environ.get(name, "1")
        if not text.isdecimal():
            raise UserError(f"{name}={text}: must be a whole number; unset it for the default")


def _table_notice(world_size: int) -> str | None:
    """torch_npu takes the world from a table of ranks, where it is a plain file that the owner may read."""
    name = os.environ.get(_TABLE)
    if not name:
        return None
    path = Path(name)
    if path.is_symlink() or not path.is_file():
        kind = "is a symbolic link" if path.is_symlink() else "is no file"
        return f"{_TABLE}={name} {kind}, so torch_npu ignores it and the ranks find one another without it"
    ranks = _ranks(path)
    if sorted(ranks) != list(range(world_size)):
        raise UserError(
            f"{_TABLE}={name} lists {len(ranks)} ranks, and this job has {world_size}, numbered from 0: torch_npu "
            "takes the ranks from there; unset it, or start as many processes"
        )
    return f"{_TABLE}={name}: torch_npu takes the addresses of the {world_size} ranks from it"


def _ranks(path: Path) -> list[int]:
    """The ranks of a table of version 2.0 (Ascend950), 1.0 to 1.2, or of the oldest form, whose groups number none."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if (status := content["status"]) != "completed":
            raise UserError(
                f"{_TABLE}={path}: status is {excerpt(repr(status))}, not 'completed': wait for whoever writes it"
            )
        if "group_list" in content:
            instances = [one for group in content["group_list"] for one in group["instance_list"]]
            return list(range(sum(len(instance["devices"]) for instance in instances)))
        if "rank_list" in content:
            return [int(one["rank_id"]) for one in content["rank_list"]]
        return [int(device["rank_id"]) for server in content["server_list"] for device in server["device"]]
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{_TABLE}={path} is not a table of ranks ({type(error).__name__}: {excerpt(error)}); unset it"
        ) from error
    except OSError as error:
        raise UserError(f"{_TABLE}={path}: {error.strerror}; unset it, or let its owner read it") from error


def _interface_notice() -> str | None:
    """HCCL meets other hosts over the first interface by name that is neither docker's nor the loopback.

    Raises:
        UserError: the address that HCCL is given is another host's.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    addresses = {
        name: [one.address for one in found if one.family in families] for name, found in psutil.net_if_addrs().items()
    }
    if address := os.environ.get("HCCL_IF_IP"):
        # IPv6 addresses may end in %interface.
        if address not in {one.partition("%")[0] for found in addresses.values() for one in found}:
            raise UserError(
                f"HCCL_IF_IP={address} is no address of this host; set each host's own, or HCCL_SOCKET_IFNAME"
            )
        return None
    names = sorted(name for name in up if addresses.get(name) and not name.startswith(("lo", "docker")))
    if os.environ.get("HCCL_SOCKET_IFNAME") or len(names) < 2:
        return None
    return (
        f"HCCL meets the other hosts over {names[0]}, the first by name of {', '.join(names)}; where that is the wrong "
        f"one, export HCCL_SOCKET_IFNAME=={names[1]} (with both signs) or, on each host, HCCL_IF_IP"
    )


def _port_notice() -> str | None:
    """Ports that HCCL listens on are taken by another process."""
    text = os.environ.get("HCCL_IF_BASE_PORT", str(_FIRST_PORT))
    if not text.isdecimal() or not 1024 <= int(text) <= 65520:
        raise UserError(f"HCCL_IF_BASE_PORT={text}: must be a port between 1024 and 65520")
    first = int(text)
    if taken := [port for port in range(first, min(first + _PORTS, 1 << 16)) if _is_taken(port)]:
        return (
            f"of the ports {first}-{first + _PORTS - 1}, which HCCL may listen on, {', '.join(map(str, taken))} "
            f"{'is' if len(taken) == 1 else 'are'} taken: end the process there, or export HCCL_IF_BASE_PORT, the same "
            "on all hosts"
        )
    return None


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # As a server does: connections of an earlier job that are about to end take nothing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def main(world_size: int, nodes: int) -> None:
    for line in notices(world_size, nodes):
        log.info(f"launch: {line}")


if __name__ == "__main__":
    logs.set_up()
    try:
        main(*map(int, sys.argv[1:]))
    except UserError as error:
        log.error(describe(error))
        sys.exit(2)
