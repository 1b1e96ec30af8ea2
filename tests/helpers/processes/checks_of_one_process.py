"""All checks of an acceptance that need one process, in this one, or those named; prints JSON.

    python -m tests.helpers.processes.checks_of_one_process PLATFORM [NAME]...

A check's own process costs a start each, which says nothing more where nothing crashes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from megatron_kaiyuan.doctor.acceptance.check import ONE_AT_A_TIME, Context
from megatron_kaiyuan.doctor.acceptance.one import run_one
from megatron_kaiyuan.doctor.acceptance.table import CHECKS

ALONE = [check for check in CHECKS if check.where.split(".")[-2] in ("machine", "numbers", "operators")]

if __name__ == "__main__":
    os.environ.update(ONE_AT_A_TIME)
    with tempfile.TemporaryDirectory() as work:
        context = Context(sys.argv[1], 2, Path(work), small=True)
        wanted = [check for check in ALONE if check.name in sys.argv[2:] or not sys.argv[2:]]
        ended = {check.name: run_one(check.where, context)[:2] for check in wanted}
    print(f"ended: {json.dumps(ended)}")
