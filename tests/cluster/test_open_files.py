"""The limit of open files, in processes of their own: a limit that was lowered stays low."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from megatron_kaiyuan.cluster.open_files import allow_open_files
from megatron_kaiyuan.errors import UserError
soft, hard, ranks, holds = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    print(allow_open_files(ranks, bool(holds)))
except UserError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("limits", "ranks", "holds", "line", "after"),
    [
        ((1024, 8000), 1024, True, "open files: 8,000 instead of 1,024, for the store of 1,024 ranks", (8000, 8000)),
        ((1024, 8000), 8, True, "None", (8000, 8000)),
        ((1024, 8000), 8192, False, "None", (8000, 8000)),
        ((4000, 4000), 1024, True, "None", (4000, 4000)),
        ((1024, 8000), 8192, True, "the store of 8,192 ranks needs 16,896 open files", (1024, 8000)),
    ],
)
def test_limit(limits: tuple[int, int], ranks: int, holds: bool, line: str, after: tuple[int, int]) -> None:
    arguments = [*limits, ranks, int(holds)]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    first, second = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert first.startswith(line) and second == str(after)
    assert "\n" not in first and ("ulimit" in first) == (limits[1] < 2 * ranks + 512 and holds)
