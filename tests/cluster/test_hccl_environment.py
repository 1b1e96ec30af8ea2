"""What HCCL would make of a host's environment: real files, real interfaces, real ports."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_kaiyuan.cluster.hccl import notices
from megatron_kaiyuan.errors import UserError


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_BUFFSIZE")
    for name in ("RANK_TABLE_FILE", "HCCL_IF_IP", "HCCL_SOCKET_IFNAME", *numbers):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HCCL_IF_BASE_PORT", str(next(filter(is_free, range(2000, 30000, 32)))))


def is_free(first: int) -> bool:
    """Whether nothing listens on 32 ports, which lie below those that the system hands out to connections."""
    connections = psutil.net_connections("inet")
    return not {one.laddr.port for one in connections if one.laddr}.intersection(range(first, first + 32))


def table(*servers: list[int], **changes: object) -> dict[str, Any]:
    """As HCCL's documentation lays it out, with the ranks of each server."""
    listed = [
        {
            "server_id": f"node_{at}",
            "device": [
                {"device_id": str(device), "device_ip": f"192.168.{at}.{device}", "rank_id": str(rank)}
                for device, rank in enumerate(ranks)
            ],
        }
        for at, ranks in enumerate(servers)
    ]
    return {
        "status": "completed",
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": listed,
        **changes,
    }


GROUPS = {
    "status": "completed",
    "group_count": "1",
    "group_list": [
        {"device_count": "2", "instance_list": [{"devices": [{"device_id": "0"}]}, {"devices": [{"device_id": "1"}]}]}
    ],
}

RANKS = {"status": "completed", "version": "2.0", "rank_list": [{"rank_id": 0}, {"rank_id": 1}]}


def test_nothing_is_said_where_nothing_is_set() -> None:
    assert notices(8, 1) == []


@pytest.mark.parametrize(("content", "ranks"), [(table([0, 1], [2, 3]), 4), (table([0]), 1), (GROUPS, 2), (RANKS, 2)])
def test_table_of_this_job(
    content: dict[str, Any], ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(content))
    monkeypatch.setenv("RANK_TABLE_FILE", str(path))
    (line,) = notices(ranks, 1)
    assert line == f"RANK_TABLE_FILE={path}: torch_npu takes the addresses of the {ranks} ranks from it"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (table([0, 1], [2, 3]), "lists 4 ranks, and this job has 2"),
        (table([1, 2]), "lists 2 ranks, and this job has 2, numbered from 0"),
        (table([0, 0]), "numbered from 0"),
        (table([0, 1], status="initializing"), "status is 'initializing', not 'completed'"),
        ({"status": "completed"}, "is not a table of ranks (KeyError: 'server_list')"),
        (table(status="completed", server_list=7), "is not a table of ranks (TypeError"),
        ([], "is not a table of ranks (TypeError"),
        ("{", "is not a table of ranks (JSONDecodeError"),
        (b"\xff", "is not a table of ranks (UnicodeDecodeError"),
        ('{"status": "completed", "rank_list": [{"rank_id": 1e999}]}', "is not a table of ranks (OverflowError"),
        ("[" * 100_000, "is not a table of ranks (RecursionError"),
    ],
)
def test_table_of_another_job(content: object, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ranks.json"
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("RANK_TABLE_FILE", str(path))
    with pytest.raises(UserError) as raised:
        notices(2, 1)
    assert str(raised.value).startswith(f"RANK_TABLE_FILE={path}") and complaint in str(raised.value)


def test_table_that_torch_npu_ignores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ranks.json").write_text(json.dumps(table([0])))
    (tmp_path / "link.json").symlink_to(tmp_path / "ranks.json")
    for name, kind in (("link.json", "is a symbolic link"), ("absent.json", "is no file"), ("", "is no file")):
        monkeypatch.setenv("RANK_TABLE_FILE", str(tmp_path / name))
        (line,) = notices(64, 1)
        assert f"{kind}, so torch_npu ignores it" in line


def test_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that HCCL would take is named where there are several; one host needs none."""
    found = {
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(one.family in (socket.AF_INET, socket.AF_INET6) for one in addresses)
        and psutil.net_if_stats()[name].isup
        and not name.startswith(("lo", "docker"))
    }
    lines = notices(16, 2)
    assert bool(lines) == (len(found) > 1)
    assert all(f"over {min(found)}, the first by name of " in line for line in lines)
    assert notices(8, 1) == []
    monkeypatch.setenv("HCCL_SOCKET_IFNAME", "=eth0")
    assert notices(16, 2) == []


def test_address_of_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_IF_IP", "127.0.0.1")
    assert notices(16, 2) == []
    monkeypatch.setenv("HCCL_IF_IP", "203.0.113.1")  # of no host, RFC 5737
    with pytest.raises(UserError, match=r"HCCL_IF_IP=203\.0\.113\.1 is no address of this host"):
        notices(16, 2)
    assert notices(8, 1) == []


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first = min(port, 65520)
        monkeypatch.setenv("HCCL_IF_BASE_PORT", str(first))
        (line,) = notices(8, 1)
        assert f"of the ports {first}-{first + 31}" in line and f" {port}" in line


@pytest.mark.parametrize("port", ["1023", "65521", "-1", "first", ""])
def test_port_that_hccl_refuses(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_IF_BASE_PORT", port)
    with pytest.raises(UserError, match="between 1024 and 65520"):
        notices(8, 1)


@pytest.mark.parametrize("name", ["HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_BUFFSIZE"])
@pytest.mark.parametrize("text", ["", "abc", "-1", "1.5", "10m"])
def test_a_number_that_is_none(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"{name}={text}: must be a whole number"):
        notices(8, 1)
    monkeypatch.setenv(name, "1200")
    assert notices(8, 1) == []
