"""Start a run, as one process, and print as JSON what its optimizer, loss scaler and schedule now work with.

RECIPE [KEY=VALUE]...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.config import load_run


def main(recipe: str, *overrides: str) -> None:
    run = load_run(Path(recipe), overrides)
    who = discover(os.environ)
    device = platform.activate(run.platform, who.local_rank)
    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.optim.scaler import loss_scaler
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    with process_groups(who, device, run.parallel):
        session = start(run, device, Startup())
        optimizer = session.state.optimizer
        decayed = next(group for group in optimizer.param_groups if group["wd_mult"] == 1.0)
        scaler = loss_scaler(optimizer)
        assert scaler is not None and session.resumed
        found = {
            "optimizer.adam_beta1": decayed["betas"][0],
            "optimizer.adam_beta2": decayed["betas"][1],
            "optimizer.adam_eps": decayed["eps"],
            "optimizer.clip_grad": optimizer.config.clip_grad,
            "optimizer.min_loss_scale": float(scaler.min_scale),
            "optimizer.loss_scale_window": scaler.growth_interval,
            "optimizer.hysteresis": scaler.hysteresis,
        }
        rates = [session.schedule.learning_rate(tokens) for tokens in range(0, 20 * run.train.tokens_per_step, 100)]
        print("FOUND " + json.dumps({"options": found, "rates": rates, "scale": float(scaler.scale)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
