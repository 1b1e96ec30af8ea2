"""What every test needs before it imports anything heavy."""

from __future__ import annotations

import collections
import os
import signal

import pytest
from hypothesis import settings

from megatron_kaiyuan import logs

# The tests never ask the network for anything, and do not belong to a job that they may be started from.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    WANDB_MODE="offline",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
_LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_LOCAL", "TORCHELASTIC_", "MS_", "RANK_", "MASTER_")
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "DEVICE_ID")
for name in list(os.environ):
    if name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES):
        del os.environ[name]

# What commands do at their start: messages go to standard error.
logs.set_up()

# Under nohup the processes of the tests would ignore it too, as they should.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine makes single examples slow; that is no failure.
settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that asks for more time than usual come first, then those with many tests.

    pytest-xdist hands out files in this order (tests/run.sh): one that takes minutes must not begin when the other
    processes are about to end.
    """
    long = {item.path for item in items if item.get_closest_marker("timeout") and not item.get_closest_marker("slow")}
    tests = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in long, -tests[item.path], str(item.path)))
