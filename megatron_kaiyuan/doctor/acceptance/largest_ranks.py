"""One rank of the step of a large recipe: trains it to its end as `kaiyuan train` does, without checkpoints.

python -m megatron_kaiyuan.cluster.torchrun ... -m megatron_kaiyuan.doctor.acceptance.largest_ranks ANSWER RECIPE ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megatron_kaiyuan import logs, platform
from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.cluster.parent import end_with_launcher
from megatron_kaiyuan.command_line import fail
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_json


def main(answer: Path, recipe: Path, overrides: list[str]) -> None:
    """Rank 0 writes the loss, and the peak of the fullest rank in bytes."""
    end_with_launcher(os.environ)
    who = discover(os.environ)
    logs.set_rank(who.rank)
    run = load_run(recipe, overrides)
    device = platform.activate(run.platform, who.local_rank, who.local_world_size or 1)
    import torch

    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.report.metrics import read_history
    from megatron_kaiyuan.train.facts import start_facts
    from megatron_kaiyuan.train.hooks.saving import Checkpoints
    from megatron_kaiyuan.train.loop import fit
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    with process_groups(who, device, run.parallel, start_facts(run)):
        session = start(run, device, Startup())
        session.hooks = [hook for hook in session.hooks if not isinstance(hook, Checkpoints)]
        fit(session)
        peak = torch.tensor([device.peak_memory_bytes()], dtype=torch.int64, device=device.device)
        # By int64 sums, which every backend has: each rank's place holds its own.
        peaks = torch.zeros(who.world_size, dtype=torch.int64, device=device.device)
        peaks[who.rank] = peak
        torch.distributed.all_reduce(peaks)
    if who.rank == 0:
        row = read_history(run.run_dir / "metrics.jsonl").rows[-1]
        found = {"loss": row["loss"], "skipped": row["grad_norm"] is None, "seconds": row["seconds_per_step"]}
        write_json(answer, {"peak": int(peaks.max().item()), "peaks": peaks.tolist(), **found})
        print(f"peaks of all ranks, bytes: {peaks.tolist()}", flush=True)


if __name__ == "__main__":
    logs.set_up()
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except UserError as error:
        fail(str(error))
