"""The store of a job of one node, and the variables that keep its ranks' connections inside."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import psutil
import pytest
import torch

from megatron_kaiyuan.cluster.discover import discover
from megatron_kaiyuan.cluster.loopback import hold_store, interfaces
from megatron_kaiyuan.cluster.start_check import open_store
from megatron_kaiyuan.errors import UserError
from tests.helpers.processes.ranks import free_port

MINUTE = timedelta(minutes=1)


def listening() -> set[tuple[str, int]]:
    """Where this process listens."""
    found = psutil.Process().net_connections("inet")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def test_a_store_is_at_the_loopback_address_only_and_given_back() -> None:
    before = listening()
    store = hold_store(0, 1, MINUTE)
    assert listening() - before == {("127.0.0.1", store.port)}
    client = torch.distributed.TCPStore("127.0.0.1", store.port, is_master=False, timeout=MINUTE)
    client.set("name", "value")
    assert store.get("name") == b"value"
    port = store.port
    del client, store
    # Other tests of this process may have closed theirs meanwhile.
    assert ("127.0.0.1", port) not in listening()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_rank_0_holds_it_where_the_address_is_the_machines_own(address: str) -> None:
    before, port = listening(), free_port()
    who = replace(discover({}), master_address=address, master_port=port, world_size=2)
    store = open_store(who, MINUTE)
    other = open_store(replace(who, rank=1, local_rank=0), MINUTE)
    other.set("name", "value")
    assert store.get("name") == b"value" and listening() - before == {("127.0.0.1", port)}
    with pytest.raises(UserError, match=f"rank 0 cannot listen at port {port}.*; set MASTER_PORT to a free one"):
        open_store(who, MINUTE)


def test_interfaces_of_one_node_and_of_several() -> None:
    alone = discover({})
    assert interfaces(alone) == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert interfaces(replace(alone, world_size=2)) == {}
    assert interfaces(replace(alone, master_address="10.0.0.7")) == {}
