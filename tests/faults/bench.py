"""Where faults are tried: recipes, undisturbed runs to compare with, and the count of what was survived."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path

from tests.faults.job import Job
from tests.helpers.processes.ranks import fork
from tests.helpers.training.small_run import TOKENS_PER_STEP, write_recipe

STEPS = 12
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "dp2": (2, []),
    "tp2": (2, ["parallel.tensor_model_parallel_size=2"]),
    "pp2": (2, ["parallel.pipeline_model_parallel_size=2"]),
    "tp2-dp2": (4, ["parallel.tensor_model_parallel_size=2"]),
}
_STEP = re.compile(r"step_\d+")


class Lost(Exception):
    """A run that did not come out as if nothing had happened."""


@dataclasses.dataclass
class Count:
    """Faults of one kind.

    Attributes:
        not_run: why it could not be tried here; empty otherwise.
    """

    injected: int = 0
    survived: int = 0
    lost: int = 0
    not_run: str = ""


class Bench:
    """A folder with recipe and data; undisturbed runs are made when they are first asked for.

    Args:
        seed: of every random choice.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.drawn = random.Random(seed)
        self.counts: dict[str, Count] = {}
        # Phases and corpora are made in a child: the libraries for it have threads.
        self.in_child(lambda: write_recipe(folder), "recipe")
        self.recipe = folder / "train.yaml"
        self._runs = 0
        self._references: dict[str, tuple[str, dict[int, float]]] = {}

    def job(self, layout: str, run_dir: Path, *overrides: str, largest_file: int | None = None) -> Job:
        """The command of a layout on a run folder, always the same one but for `overrides`."""
        ranks, options = LAYOUTS[layout]
        tokens = f"train.train_tokens={STEPS * TOKENS_PER_STEP}"
        # The log lies beside the folder, which a scenario may fill up or take away.
        log = run_dir.with_name(f"{run_dir.name}.log")
        return Job(
            ranks, self.recipe, [f"run_dir={run_dir}", tokens, *options, *overrides], log, largest_file=largest_file
        )

    def new_run(self) -> Path:
        self._runs += 1
        return self.folder / f"run_{self._runs}"

    def count(self, name: str) -> Count:
        return self.counts.setdefault(name, Count())

    def reference(self, layout: str) -> tuple[str, dict[int, float]]:
        """Digest of the final state and losses of an undisturbed run."""
        if layout not in self._references:
            run_dir = self.folder / f"undisturbed_{layout}"
            if set(self.job(layout, run_dir, "checkpoint.save_every_steps=4").wait()) != {0}:
                raise RuntimeError(f"the undisturbed run failed: {log_of(run_dir)[-2000:]}")
            self._references[layout] = self._digest(run_dir), losses(run_dir)
        return self._references[layout]

    def finish(self, layout: str, run_dir: Path, *overrides: str) -> None:
        """Give the same command again, to the end, and compare with the undisturbed run.

        Raises:
            Lost: it fails, or one bit differs.
        """
        codes = self.job(layout, run_dir, *overrides).wait()
        if set(codes) != {0}:
            raise Lost(f"exit codes {codes}: {log_of(run_dir)[-1500:]}")
        self.compare(layout, run_dir)

    def compare(self, layout: str, run_dir: Path) -> None:
        digest, expected = self.reference(layout)
        if self._digest(run_dir) != digest:
            raise Lost(f"{run_dir}: the final state differs from that of the undisturbed run")
        # A rank that is killed between a save and the row of its step takes the row along, which no one needs to go on.
        different = {step: loss for step, loss in losses(run_dir).items() if loss != expected[step]}
        if different:
            raise Lost(f"{run_dir}: losses {different} are not those of {expected}")

    def done_with(self, run_dir: Path) -> None:
        """What was survived is of no more interest."""
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.with_name(f"{run_dir.name}.log").unlink(missing_ok=True)

    def _digest(self, run_dir: Path) -> str:
        """Of every tensor in the checkpoint of the last step, and of what is common to the ranks."""
        output = run_dir.with_name("digest")
        self.in_child(lambda: output.write_text(_digest(run_dir / "checkpoints" / f"step_{STEPS}")), "digest")
        return output.read_text()

    def in_child(self, action, name: str) -> None:  # type: ignore[no-untyped-def]
        log = self.folder / f"{name}.log"
        _, status = os.waitpid(fork(action, (log, log)), 0)
        if status:
            raise Lost(f"{name}: {log.read_text()[-1500:]}")


def saving(run_dir: Path) -> bool:
    """A save is under way, or was when its process died: a folder that is no finished step, or not yet `latest`."""
    try:
        names = os.listdir(run_dir / "checkpoints")
        steps = [int(name[5:]) for name in names if _STEP.fullmatch(name)]
        if any(name.endswith(".tmp") for name in names):
            return True
        latest = (run_dir / "latest").read_text().strip() if (run_dir / "latest").exists() else ""
        return bool(steps) and latest != f"step_{max(steps)}"
    except FileNotFoundError:
        return False


def steps_saved(run_dir: Path) -> set[str]:
    folder = run_dir / "checkpoints"
    return {name for name in os.listdir(folder) if _STEP.fullmatch(name)} if folder.is_dir() else set()


def log_of(run_dir: Path) -> str:
    return run_dir.with_name(f"{run_dir.name}.log").read_text(errors="replace")


def losses(run_dir: Path) -> dict[int, float]:
    """By step, as it was taken last; a line that a killed rank tore is none."""
    rows = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "loss" in row and "event" not in row:
            rows[row["step"]] = row["loss"]
    return rows


def _digest(step: Path) -> str:
    import torch
    from megatron.core import dist_checkpointing

    from megatron_kaiyuan import platform
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(platform.activate("cpu")):
        tensors = dist_checkpointing.load_plain_tensors(str(step))
        common = dist_checkpointing.load_common_state_dict(str(step))
    digest = hashlib.sha256()
    for name in sorted(name for name, value in tensors.items() if isinstance(value, torch.Tensor)):
        digest.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(repr([common["progress"], common["optimizer"], common.get("monitors")]).encode())
    return digest.hexdigest()
