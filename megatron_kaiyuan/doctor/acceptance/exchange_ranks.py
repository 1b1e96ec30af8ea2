"""One rank of the check of exchanges.

python -m megatron_kaiyuan.cluster.torchrun --nproc-per-node 2 -m megatron_kaiyuan.doctor.acceptance.exchange_ranks npu
"""

from __future__ import annotations

import os
import sys

from megatron_kaiyuan import logs, platform
from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.cluster.parent import end_with_launcher


def main() -> int:
    """1 when an exchange failed on this rank."""
    end_with_launcher(os.environ)
    who = discover(os.environ)
    logs.set_rank(who.rank)
    device = platform.activate(sys.argv[1], who.local_rank, who.local_world_size or 1)
    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.config import ParallelConfig
    from megatron_kaiyuan.doctor.examination import Examination
    from megatron_kaiyuan.doctor.exchanges import examine_exchanges

    found = Examination()
    with process_groups(who, device, ParallelConfig()):
        right = examine_exchanges(found, device)
    for finding in found.findings:
        print(f"problem: rank {who.rank}: {finding.message}", flush=True)
    if who.rank == 0:
        types = dict.fromkeys(name.rpartition(" of ")[2] for name in right)
        print(*right, f"right: {len(right)} exchanges, of {', '.join(types)}", sep="\n", flush=True)
    return 1 if found.findings else 0


if __name__ == "__main__":
    logs.set_up()
    sys.exit(main())
