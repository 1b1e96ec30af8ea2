"""One rank of a job that looks at its own restoring; started by torchrun.

copy RECIPE COPY [KEY=VALUE]...    resume, save what was restored to COPY at once, then train to the end
again RECIPE STEPS [KEY=VALUE]...  take STEPS steps, go back to the checkpoint of the start, take them again: the
                                   losses must be the same, bit for bit
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.config import load_run


def main(mode: str, recipe: str, argument: str, *overrides: str) -> None:
    run = load_run(Path(recipe), overrides)
    who = discover(os.environ)
    device = platform.activate(run.platform, who.local_rank)
    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    with process_groups(who, device, run.parallel):
        session = start(run, device, Startup())
        if mode == "copy":
            save_copy(session, Path(argument))
        else:
            take_twice(session, int(argument))


def save_copy(session, folder: Path) -> None:
    from megatron_kaiyuan.checkpoint.save import save_folder
    from megatron_kaiyuan.train.loop import fit

    assert session.resumed
    save_folder(folder, {**session.state.sharded(), "run": session.identity})
    fit(session)


def take_twice(session, steps: int) -> None:
    from megatron_kaiyuan.checkpoint import layout
    from megatron_kaiyuan.train.hooks.hook import Hook
    from megatron_kaiyuan.train.loop import fit
    from megatron_kaiyuan.train.resume import restore_step

    losses: list[float] = []

    class Record(Hook):
        def after_step(self, session, result) -> None:
            losses.append(result.loss)

    start = session.state.progress.step
    session.hooks = [Record()]
    session.end = session.state.progress.tokens + steps * session.run.train.tokens_per_step
    fit(session)
    restore_step(session.state, layout.step_folder(session.run.run_dir, start))
    assert session.state.progress.step == start
    fit(session)
    assert losses[:steps] == losses[steps:] and len(set(losses)) == steps, losses


if __name__ == "__main__":
    main(*sys.argv[1:])
