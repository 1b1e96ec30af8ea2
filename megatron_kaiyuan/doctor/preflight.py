"""`kaiyuan train --preflight`: a quick examination of all ranks, by each rank that is about to train."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.cluster.parent import end_with_launcher
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.doctor.run import may_be_npu
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.exit_codes import FAILED

# After all ranks have come. An NPU compiles operators at their first call.
_SECONDS, _NPU_SECONDS = 30, 120
_LAST_PORT = 65535


def preflight(recipe: Path, overrides: Sequence[str]) -> None:
    """Return when all nodes are in order; else exit with BAD_NODE or FAILED, on every rank alike (`exit_codes.py`).

    Mistakes are left to the training, which reports them.
    """
    end_with_launcher(os.environ)
    try:
        who, run = discover(os.environ), load_run(recipe, overrides)
    except (UserError, OSError):
        return
    if who.is_scheduler:
        return
    variables = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and who.launcher != "none":
        # Not where the training's store will be: a rank that is early would find the other one there.
        port = who.master_port + 1 if who.master_port < _LAST_PORT else who.master_port - 1
        variables["MASTER_PORT"] = str(port)
    seconds = _NPU_SECONDS if may_be_npu(run.platform) else _SECONDS
    command = [sys.executable, "-m", "megatron_kaiyuan.doctor.quick", run.platform, str(run.run_dir), str(seconds)]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, env={**os.environ, **variables}, check=False).returncode
    if code:
        sys.exit(code if code > 0 else FAILED)
