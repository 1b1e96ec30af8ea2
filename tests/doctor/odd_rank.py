"""Doctor on ranks of which rank 1 is odd: its clock is wrong, or it stops in the middle.

odd_rank.py clock SECONDS | stop 0   [ARGUMENTS OF DOCTOR]...
"""

from __future__ import annotations

import os
import signal
import sys
import time

from megatron_kaiyuan.cli import main

kind, amount = sys.argv[1], float(sys.argv[2])
if os.environ["RANK"] == "1":
    if kind == "clock":
        real_time_ns = time.time_ns
        time.time_ns = lambda: real_time_ns() + int(amount * 1e9)
    else:
        from megatron_kaiyuan.doctor import collectives

        def stop(*_: object) -> float:
            os.kill(os.getpid(), signal.SIGSTOP)
            return 1.0

        collectives._seconds = stop  # type: ignore[assignment]
sys.argv[1:] = ["doctor", *sys.argv[3:]]
main()
