"""The collector is paused, and comes back as it was."""

from __future__ import annotations

import gc

import pytest

from megatron_kaiyuan.cluster.many_objects import collector_paused


@collector_paused()
def is_enabled() -> bool:
    with collector_paused():
        pass
    return gc.isenabled()


def test_collector_is_as_it_was() -> None:
    assert gc.isenabled() and not is_enabled() and gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        assert not is_enabled() and not gc.isenabled()
    finally:
        gc.enable()


def test_no_collection_while_many_objects_are_made() -> None:
    before = [one["collections"] for one in gc.get_stats()]
    with collector_paused():
        many = [[number] for number in range(100_000)]
        assert [one["collections"] for one in gc.get_stats()] == before
    assert len(many) == 100_000
