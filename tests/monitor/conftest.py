from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_kaiyuan import platform


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """megatron-core's process groups of one."""
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield
