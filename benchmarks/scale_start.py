"""A whole start, a save and a resume at W ranks, end to end, for rank 0 and for one other rank.

    OMP_NUM_THREADS=1 python -m benchmarks.scale_start

The project's own functions run in one process, in the order of a start: the preflight's exchange, the start check, the
groups, the watchdog, `train.start.start` (data, network, lock, agreements), the first save, and a resume of it. The
other ranks are simulated (`scale_world.py`): what they put into the store, and what they send. Seconds are this
process's processor time, 0.2 ms for each call of the store, 50 us for each hop of a collective over a tree there and
back, 1 GB/s for what passes a rank's link, and 1 ms for each file opened or looked at.

Not in it: the imports (`benchmarks.startup`, `launch/stage_env.sh`), NCCL's or HCCL's own connections, the bytes of
weights and optimizer state to and from the disks, and the measurements of devices in the preflight.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.scale_clients import Costs
from benchmarks.scale_state import RankState
from benchmarks.scale_world import World
from benchmarks.startup import write_recipe

SIZES = (64, 1024, 8192)
_A_NODE = 8
_KINDS = ("processor", "network", "disk")


def sampled(ranks: int) -> int:
    """The other rank that is simulated."""
    return ranks // 2 + 1


def simulate(rank: int, ranks: int, folder: Path) -> World:
    """Start, save and resume as one rank of many. Rank 0 has to come before the other one."""
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster import Rank
    from megatron_kaiyuan.config import load_run

    device = platform.activate("cpu")
    run = load_run(folder / "train.yaml", [f"run_dir={folder / 'run'}"])
    who = Rank(rank, ranks, rank % _A_NODE, _A_NODE, "node0", 29500, "torchrun")
    states = RankState(ranks)
    temporary: list[Path] = []

    def others(value: Any, other: int) -> Any:
        """What another rank sends where this one sends `value`."""
        from torch.distributed.checkpoint.planner import SavePlan

        if isinstance(value, SavePlan):
            return states.plan(other)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
            return states.written(other, temporary[-1], is_real=other == sampled(ranks))
        if isinstance(value, list) and value and value[0][0] in states.names:
            return states.wanted(other)
        return value

    world = World(rank, ranks, others, sampled(ranks), folder / "mailbox")
    with world.collectives():
        _preflight(world, who, folder)
        session, _groups = _start(world, who, run, device)
        _save_and_resume(world, states, session, folder, temporary)
    return world


def _preflight(world: World, who: Any, folder: Path) -> None:
    from megatron_kaiyuan.doctor import quick
    from megatron_kaiyuan.doctor.examination import Examination
    from megatron_kaiyuan.doctor.quick_keys import Keys

    found = Examination({"device": {"name": "H100", "memory": 80}, "speeds": dict.fromkeys("abcd", 1.5)})
    for other in range(world.ranks):
        if other != world.rank:
            world.store.content[f"kaiyuan/preflight/{quick._HERE}{other}"] = f"node{other // _A_NODE}".encode()
            world.store.content[f"kaiyuan/preflight/{quick._READY}{other}"] = b"yes"
            world.store.content[f"kaiyuan/preflight/{quick._FOUND}{other}"] = json.dumps(found.as_json()).encode()
    world.store.content[f"kaiyuan/preflight/{quick._READ}"] = str(world.ranks - 1).encode()
    if world.rank:
        hosts = [[f"node{node}", _A_NODE] for node in range(world.ranks // _A_NODE)]
        answers = {quick._HOSTS: json.dumps(hosts), quick._GO: "yes", quick._VERDICT: "0"}
        world.store.content |= {f"kaiyuan/preflight/{key}": value.encode() for key, value in answers.items()}
    with world.part("preflight: who is there, readiness, verdict"):
        one = quick.Quick(who, "cpu", folder / "run", 30)
        one._keys = Keys(world.store, world.ranks)  # type: ignore[arg-type]
        assert one._meet() and one._all_ready(True)
        one.found = found
        assert one._end() == 0


def _start(world: World, who: Any, run: Any, device: Any) -> tuple[Any, Any]:
    """Return the session and the groups, which end where they are forgotten."""
    from megatron_kaiyuan.cluster import groups, search, start_check
    from megatron_kaiyuan.cluster.verdict import Alive
    from megatron_kaiyuan.cluster.watchdog import Watchdog
    from megatron_kaiyuan.train.facts import start_facts
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    facts = start_facts(run, device.fused)
    for other in range(world.ranks):
        here = {"host": f"node{other // _A_NODE}", "facts": dict(facts)}
        world.store.content[f"{start_check._HERE}{other}"] = json.dumps(here).encode()
        alive = Alive(1, 0, True, "torch/distributed/distributed_c10d.py:2501 (all_reduce)", "node", other, "1")
        world.store.content[f"{search._ALIVE}{other}"] = json.dumps(asdict(alive)).encode()
    if world.rank:
        world.store.content[start_check._VERDICT] = json.dumps({"different": "", "by": 0}).encode()
    with world.part("start check"):
        start_check.start_check(world.store, who, facts, timedelta(minutes=10))  # type: ignore[arg-type]
    device.collective_backend = "fake"
    with mock.patch.object(groups, "start_check", lambda *_: None), world.part("groups of megatron-core"):
        made = groups.process_groups(who, device, run.parallel)
        made.__enter__()
    with world.part("watchdog: first report"):
        watchdog = Watchdog(who, 300, 600)
        watchdog.start()
    watchdog.stop()
    with world.part("watchdog: a look at all ranks"):
        search.look(world.store, world.ranks)  # type: ignore[arg-type]
    with world.part("data, network, lock, agreements"):
        return start(run, device, Startup()), made


def _save_and_resume(world: World, states: RankState, session: Any, folder: Path, temporary: list[Path]) -> None:
    import torch

    from megatron_kaiyuan.checkpoint import save
    from megatron_kaiyuan.checkpoint.choose import choose_step
    from megatron_kaiyuan.checkpoint.layout import step_folder
    from megatron_kaiyuan.checkpoint.load import load_sharded

    step = step_folder(folder / "run", 0)
    make = save._make_folder

    def make_folder(place: Path, needed: int) -> Path:
        # Rank 0, which ran before the other rank, has renamed its own by then.
        made = make(place, needed)
        made.mkdir(parents=True, exist_ok=True)
        temporary.append(made)
        return made

    shards = states.shards(world.rank)
    saver = save.Saver()
    # The simulated ranks' bytes are holes, and need no room.
    no_disk = mock.patch.object(save, "require_room", lambda *_: None)
    with no_disk, mock.patch.object(save, "_make_folder", make_folder):
        with world.part("first save: planned, until training continues"):
            content = {"shards": shards, "random": session.state._gather_random_states(), "run": session.identity}
            saver.begin(step, content, {"step": 0, "tokens": 0}, copy=False)
        with world.part("first save: metadata and manifest"):
            saver.wait()
    loaded = states.shards(world.rank)
    for shard in loaded.values():
        shard.data.zero_()
    with world.part("resume: manifest, own share verified"):
        assert choose_step(folder / "run").step == 0
    with world.part("resume: metadata, common state, own shards"):
        found = load_sharded(step, {"shards": loaded})
    own = [key for key, shard in shards.items() if shard.key.startswith("optimizer.")]
    assert own and all(torch.equal(found["shards"][key], shards[key].data) for key in own)
    assert torch.equal(found["random"]["host"], torch.get_rng_state())


def measure(ranks: int) -> list[dict[str, dict[str, float]]]:
    """Return the parts of rank 0 and of the other rank, each from a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recipe(folder, documents=64 * (ranks + 64) // 200 + 1, batch=ranks)
        found = []
        for rank in (0, sampled(ranks)):
            command = [sys.executable, "-m", "benchmarks.scale_start", "--one", str(rank), str(ranks), name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        return found


def _print(found: dict[int, list[dict[str, dict[str, float]]]], which: int, title: str) -> None:
    print(f"\n{title:50}" + "".join(f"{size:>12,}" for size in found))
    for part in next(iter(found.values()))[which]:
        values = (sum(one[which][part][kind] for kind in _KINDS) for one in found.values())
        print(f"{part:50}" + "".join(f"{value:>10.3f} s" for value in values))
    for name, other in (("a new run, with its first save", "resume"), ("a run that is resumed", "first save")):
        ways = (
            [part[kind] for key, part in one[which].items() if not key.startswith(other) for kind in _KINDS]
            for one in found.values()
        )
        print(f"{name:50}" + "".join(f"{sum(way):>10.2f} s" for way in ways))
    for name, kinds in (
        ("sum of all", _KINDS),
        ("  of it processor time", ("processor",)),
        ("  of it store and collectives", ("network",)),
        ("  of it files", ("disk",)),
    ):
        values = (sum(part[kind] for part in one[which].values() for kind in kinds) for one in found.values())
        print(f"{name:50}" + "".join(f"{value:>10.2f} s" for value in values))
    for name, kind in (("calls of the store", "calls"), ("bytes received", "bytes")):
        values = (sum(part[kind] for part in one[which].values()) for one in found.values())
        print(f"{name:50}" + "".join(f"{value:>12,.0f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", nargs=3, metavar=("RANK", "RANKS", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        rank, ranks, folder = given.one
        print(simulate(int(rank), int(ranks), Path(folder)).as_json(), flush=True)
        # Groups that are not there are not taken down.
        os._exit(0)
    found = {ranks: measure(ranks) for ranks in given.ranks}
    _print(found, 0, "rank 0, by part")
    _print(found, 1, "another rank, by part")
    # The store has one thread: what all ranks ask it while they start.
    costs = Costs()
    calls = [ranks * sum(part["calls"] for part in one[1].values()) for ranks, one in found.items()]
    print(f"\n{'the store, for the calls of all ranks':50}" + "".join(f"{costs.call * one:>10.2f} s" for one in calls))


if __name__ == "__main__":
    main()
