"""Checks that end in every way a check can, for test_acceptance.py; none needs torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from megatron_kaiyuan.doctor.acceptance.check import Check, CheckFailed, Context, NotPossible


def devices(context: Context) -> tuple[str, dict[str, Any]]:
    return "3 x something", {"platform": context.platform, "devices": 3}


def passes(context: Context) -> str:
    print("a token:", os.environ["MY_API_TOKEN"])
    with open(context.work.parent.parent / "passes", "a") as log:
        log.write("ran\n")
    return f"{context.ranks} ranks, {os.environ['MY_API_TOKEN']}"


def fails(context: Context) -> str:
    raise CheckFailed("off by 0.5")


def impossible(context: Context) -> str:
    raise NotPossible("no such device")


def raises(context: Context) -> str:
    raise RuntimeError("call aclnnExp failed\nwith a stack\nof lines")


def crashes(context: Context) -> str:
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return ""


def hangs(context: Context) -> str:
    """With a rank in a session of its own, as torchrun starts them."""
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (context.work.parent.parent / "hanging").write_text(f"{rank.pid}")
    print("hanging", flush=True)
    time.sleep(600)
    return ""


def checks(*names: str, seconds: float = 60) -> list[Check]:
    return [
        Check(f"tests.helpers.processes.faulty_checks.{name}", f"it {name}", seconds) for name in ("devices", *names)
    ]
