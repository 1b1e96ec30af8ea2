"""Do all ranks see the same folder?"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_kaiyuan.cluster import Rank
from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.doctor.machine import existing

_KEY = "kaiyuan/doctor/shared"
# NFS clients believe for some seconds that a file is not there.
_SECONDS = 15.0


@contextlib.contextmanager
def shared_file(found: Examination, who: Rank, folder: Path, store: torch.distributed.Store) -> Iterator[None]:
    """Rank 0 writes a file in the run folder, or the nearest one above it that exists; the others look for it.

    It is removed after the body of the `with`, when all have looked.
    """
    content = uuid.uuid4().hex
    path = existing(folder) / f".doctor-{content}"
    with found.part("shared folder"):
        if who.rank == 0:
            # Sent even if it fails, so that no rank waits for the name.
            store.set(_KEY, str(path))
            path.write_text(content)
        else:
            _look_for(Path(store.get(_KEY).decode()), found)
    try:
        yield
    finally:
        if who.rank == 0:
            path.unlink(missing_ok=True)


def _look_for(path: Path, found: Examination) -> None:
    deadline = time.monotonic() + _SECONDS
    while not _is_whole(path):
        if time.monotonic() > deadline:
            found.problem(
                f"shared folder: {path.parent} does not show a file that rank 0 wrote there; runs, phases and corpora "
                "have to lie on a file system that all hosts mount",
                of_node=True,
            )
            return
        time.sleep(0.1)


def _is_whole(path: Path) -> bool:
    try:
        return path.name.endswith(path.read_text()) and path.stat().st_size > 0
    except OSError:
        return False
