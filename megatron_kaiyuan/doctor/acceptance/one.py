"""One check in this process.

    python -m megatron_kaiyuan.doctor.acceptance.one PACKAGE.MODULE.FUNCTION CONTEXT RESULT

CONTEXT and RESULT are JSON files; what is printed is part of the record.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from megatron_kaiyuan import logs
from megatron_kaiyuan.cluster.parent import end_with_parent
from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context, NotPossible, State
from megatron_kaiyuan.errors import excerpt
from megatron_kaiyuan.files import read_json, write_json


def run_one(where: str, context: Context) -> tuple[State, str, dict[str, Any]]:
    """How the check ends, its figure, and facts."""
    module, _, function = where.rpartition(".")
    try:
        check = getattr(importlib.import_module(module), function)
        found = check(context)
        return ("ok", found, {}) if isinstance(found, str) else ("ok", *found)
    except NotPossible as error:
        return "not possible", str(error), {}
    except CheckFailed as error:
        return "failed", str(error), {}
    except Exception as error:
        # Into the record: an operator that a device does not have fails in many ways.
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {excerpt(next(iter(str(error).splitlines()), ''))}", {}


if __name__ == "__main__":
    logs.set_up()
    end_with_parent(signal.SIGKILL)
    state, figure, facts = run_one(sys.argv[1], Context.from_json(read_json(Path(sys.argv[2]), "context of a check")))
    write_json(Path(sys.argv[3]), {"state": state, "figure": figure, "facts": facts})
    sys.stdout.flush()
    sys.stderr.flush()
    # Exit without the driver's own cleanup: if that fails or hangs, the check has not failed.
    os._exit(0)
