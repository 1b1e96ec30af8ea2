"""The faults. Each scenario breaks a run, gives the same command again, and compares the end bit by bit."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.bench import LAYOUTS, Bench, Lost, log_of, losses, saving, steps_saved
from tests.faults.damage import DAMAGES
from tests.helpers.training.small_run import TOKENS_PER_STEP

EACH_STEP = "checkpoint.save_every_steps=1"
SOME_STEPS = "checkpoint.save_every_steps=4"
# A save of this size takes about as long.
_LONGEST_DELAY_SECONDS = 0.25
_HANG_TIMEOUT_SECONDS = 10


@contextlib.contextmanager
def counted(bench: Bench, name: str, faults: int = 1) -> Iterator[None]:
    """The body injects so many faults and survives them, or raises Lost."""
    count = bench.count(name)
    count.injected += faults
    try:
        yield
        count.survived += faults
    except Exception as error:
        # A run that fails without a fault of ours is lost as well.
        count.injected += not faults
        count.lost += faults or 1
        print(f"LOST {name}: {type(error).__name__}: {error}", flush=True)


def kills_in_saves(bench: Bench, layout: str, asynchronous: bool, everybody: bool, most: int) -> None:
    """One run, killed in its saves and started again until it is through, or until `most` kills hit."""
    run_dir, ranks = bench.new_run(), LAYOUTS[layout][0]
    overrides = [EACH_STEP, "checkpoint.keep_last=2", f"checkpoint.asynchronous={str(asynchronous).lower()}"]
    who = "all ranks" if everybody else "one rank"
    name = f"SIGKILL of {who} in a save, {'asynchronous' if asynchronous else 'synchronous'}"
    hits = misses = 0
    codes = [-signal.SIGKILL]
    while hits < most and -signal.SIGKILL in codes:
        job = bench.job(layout, run_dir, *overrides)
        if _wait_for_a_save(bench, job, run_dir):
            time.sleep(bench.drawn.random() * _LONGEST_DELAY_SECONDS)
            victims = range(ranks) if everybody else [bench.drawn.randrange(ranks)]
            job.kill(victims, signal.SIGKILL)
        codes = job.wait()
        if -signal.SIGKILL in codes:
            hits, misses = (hits + 1, misses) if saving(run_dir) else (hits, misses + 1)
    with counted(bench, name, hits):
        # The run may be through already; another end than by a kill is none that it may have.
        if set(codes) != {0} and -signal.SIGKILL not in codes:
            raise Lost(f"exit codes {codes}: {log_of(run_dir)[-1500:]}")
        bench.finish(layout, run_dir, *overrides)
        bench.done_with(run_dir)
    if misses:
        # Killed just before or behind a save: survived as well, or the run would not have come to its end.
        count = bench.count(f"SIGKILL of {who} outside of a save")
        count.injected += misses
        count.survived += misses


def _wait_for_a_save(bench: Bench, job, run_dir: Path) -> bool:  # type: ignore[no-untyped-def]
    """For one of the next saves."""
    for _ in range(bench.drawn.randint(1, 4)):
        known = steps_saved(run_dir)
        # The next one is there: either begun, or done between two looks.
        if not job.wait_for(lambda known=known: saving(run_dir) or steps_saved(run_dir) - known):  # type: ignore[misc]
            return False
        known = steps_saved(run_dir)
        last = not job.wait_for(lambda known=known: bool(steps_saved(run_dir) - known), 5.0)  # type: ignore[misc]
        if last:
            return False
    return job.wait_for(lambda: saving(run_dir), 5.0)


def sigterm(bench: Bench, layout: str) -> None:
    """To all ranks, as a cluster does: step, save, marker, exit 143."""
    with counted(bench, "SIGTERM to all ranks"):
        run_dir = bench.new_run()
        job = bench.job(layout, run_dir, SOME_STEPS)
        job.wait_for(lambda: _steps(run_dir) >= bench.drawn.randint(1, 3))
        job.kill(range(LAYOUTS[layout][0]), signal.SIGTERM)
        codes = job.wait()
        if set(codes) != {143}:
            raise Lost(f"exit codes {codes} after SIGTERM: {log_of(run_dir)[-1500:]}")
        reached = max(int(name[5:]) for name in steps_saved(run_dir))
        if reached != _steps(run_dir):
            raise Lost(f"step {_steps(run_dir)} was trained, but step {reached} saved")
        bench.finish(layout, run_dir, SOME_STEPS)
        bench.done_with(run_dir)


def sigstop(bench: Bench, layout: str) -> None:
    """One rank stops for ever; the job ends in time, and names it."""
    with counted(bench, "SIGSTOP of one rank"):
        run_dir, victim = bench.new_run(), bench.drawn.randrange(LAYOUTS[layout][0])
        job = bench.job(layout, run_dir, SOME_STEPS, f"faults.hang_timeout_seconds={_HANG_TIMEOUT_SECONDS}")
        job.wait_for(lambda: _steps(run_dir) >= 2)
        job.kill([victim], signal.SIGSTOP)
        began = time.monotonic()
        job.wait_for(lambda: False)
        seconds = time.monotonic() - began
        job.wait()
        log = log_of(run_dir)
        # Rank 0 holds the store that all speak through here.
        blamed = f"rank {victim} does not answer" if victim else r"the store at \S+ does not answer, which rank 0"
        if not re.search(f"error: .*{blamed}", log):
            raise Lost(f"rank {victim} was stopped, but nobody says so: {log[-3000:]}")
        # A busy machine gets some seconds more.
        if seconds > _HANG_TIMEOUT_SECONDS + 5:
            raise Lost(f"it took {seconds:.1f} s to see that rank {victim} hangs")
        bench.finish(layout, run_dir, SOME_STEPS)
        bench.done_with(run_dir)


def file_limit(bench: Bench, layout: str) -> None:
    """A checkpoint's largest file does not fit: nothing is left behind, and older checkpoints stay."""
    with counted(bench, "no room: limit on file size"):
        run_dir = bench.new_run()
        _train_until(bench, layout, run_dir, 4)
        largest = max(path.stat().st_size for path in (run_dir / "checkpoints").rglob("*.distcp"))
        codes = bench.job(layout, run_dir, SOME_STEPS, largest_file=bench.drawn.randrange(1, largest)).wait()
        _expect_refusal(run_dir, codes)
        bench.finish(layout, run_dir, SOME_STEPS)
        bench.done_with(run_dir)


def full_disk(bench: Bench, layout: str) -> None:
    """A small disk, and somebody fills it up in the middle of the run."""
    with counted(bench, "disk full"), _disk(bench) as disk:
        run_dir = disk / "run"
        job = bench.job(layout, run_dir, EACH_STEP)
        job.wait_for(lambda: len(steps_saved(run_dir)) >= 2)
        with open(disk / "ballast", "wb") as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(1 << 16))
                ballast.flush()
        _expect_refusal(run_dir, job.wait())
        (disk / "ballast").unlink()
        bench.finish(layout, run_dir, EACH_STEP)


def read_only_disk(bench: Bench, layout: str) -> None:
    """As a kernel does after errors of a disk: it turns read-only under the run."""
    with counted(bench, "disk turns read-only"):
        run_dir = bench.new_run()
        job = bench.job(layout, run_dir, EACH_STEP)
        job.wait_for(lambda: len(steps_saved(run_dir)) >= 2)
        with _read_only(run_dir / "checkpoints"):
            _expect_refusal(run_dir, job.wait())
        bench.finish(layout, run_dir, EACH_STEP)
        bench.done_with(run_dir)


def damaged_files(bench: Bench, layout: str, most: int | None) -> None:
    """Each file of the newest checkpoint, each damage, or a random choice of `most`: an older one is used."""
    run_dir = bench.new_run()
    _train_until(bench, layout, run_dir, 8)
    step = run_dir / "checkpoints" / "step_8"
    files = sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file())
    cases = [(file, kind) for file in files for kind in DAMAGES]
    for file, kind in cases if most is None else bench.drawn.sample(cases, most):
        with counted(bench, f"file {kind}"):
            broken = bench.new_run()
            shutil.copytree(run_dir, broken)
            DAMAGES[kind](broken / "checkpoints" / "step_8" / file, bench.drawn)
            bench.finish(layout, broken, SOME_STEPS)
            log = log_of(broken)
            if "resume: step 4," not in log or "step_8" not in log:
                raise Lost(f"{file} {kind}: {log[-1500:]}")
            bench.done_with(broken)
    bench.done_with(run_dir)


def wrong_latest(bench: Bench, layout: str) -> None:
    """`latest` is a note about the checkpoints; whatever it says, the newest whole one is used."""
    run_dir = bench.new_run()
    _train_until(bench, layout, run_dir, 8)
    wrong: dict[str, Callable[[Path], object]] = {
        "stale": lambda path: path.write_text("step_4\n"),
        "dangling": lambda path: path.write_text("step_99\n"),
        "removed": lambda path: path.unlink(),
        "garbage": lambda path: path.write_bytes(os.urandom(40)),
        "empty": lambda path: path.write_bytes(b""),
    }
    for kind, spoil in wrong.items():
        with counted(bench, f"`latest` {kind}"):
            other = bench.new_run()
            shutil.copytree(run_dir, other)
            spoil(other / "latest")
            bench.finish(layout, other, SOME_STEPS)
            if "resume: step 8," not in log_of(other):
                raise Lost(f"latest {kind}: {log_of(other)[-1500:]}")
            bench.done_with(other)
    bench.done_with(run_dir)


def two_jobs(bench: Bench, layout: str) -> None:
    """The second one is refused at once; the first one does not notice."""
    with counted(bench, "two jobs in one folder"):
        run_dir = bench.new_run()
        first = bench.job(layout, run_dir, SOME_STEPS, "train.train_tokens=null")
        if not first.wait_for(lambda: _steps(run_dir) >= 1):
            raise Lost(f"the first job ended: {log_of(run_dir)[-1500:]}")
        # Stopped, so that it is there as long as the second one looks.
        first.kill(range(LAYOUTS[layout][0]), signal.SIGSTOP)
        codes = bench.job(layout, run_dir, SOME_STEPS).wait()
        first.kill(range(LAYOUTS[layout][0]), signal.SIGCONT)
        first.kill(range(LAYOUTS[layout][0]), signal.SIGTERM)
        first_codes = first.wait()
        if 2 not in codes or 0 in codes:
            raise Lost(f"the second job ended with {codes}: {log_of(run_dir)[-1500:]}")
        if set(first_codes) != {143}:
            raise Lost(f"the first job ended with {first_codes}: {log_of(run_dir)[-1500:]}")
        bench.finish(layout, run_dir, SOME_STEPS)
        bench.done_with(run_dir)


def _train_until(bench: Bench, layout: str, run_dir: Path, step: int) -> None:
    codes = bench.job(layout, run_dir, SOME_STEPS, f"train.train_tokens={step * TOKENS_PER_STEP}").wait()
    if set(codes) != {0} or f"step_{step}" not in steps_saved(run_dir):
        raise Lost(f"exit codes {codes}: {log_of(run_dir)[-1500:]}")


def _expect_refusal(run_dir: Path, codes: list[int]) -> None:
    """One line that says what is wrong, exit code 2, and nothing half done left behind."""
    log = log_of(run_dir)
    if 2 not in codes or "Traceback" in log or "error: " not in log:
        raise Lost(f"exit codes {codes}: {log[-3000:]}")


def _steps(run_dir: Path) -> int:
    return max(losses(run_dir), default=0) if (run_dir / "metrics.jsonl").exists() else 0


@contextlib.contextmanager
def _disk(bench: Bench) -> Iterator[Path]:
    """A disk of its own, in memory."""
    disk = bench.new_run()
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "kaiyuan-faults", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """A read-only view of a folder over itself; a disk with files open for writing cannot be made so by us."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None
