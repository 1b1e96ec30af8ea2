"""Averaging real checkpoints of megatron-core."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError

if TYPE_CHECKING:
    from megatron_kaiyuan.checkpoint.average import Selection
    from megatron_kaiyuan.checkpoint.weighting import Weighting


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


def save(run_dir: Path, step: int, value: float, **about: object) -> None:
    from megatron_kaiyuan.checkpoint import layout
    from megatron_kaiyuan.checkpoint.load import whole
    from megatron_kaiyuan.checkpoint.save import save_folder

    weights = {"layer.weight": torch.full((3, 2), value), "optimizer.state.exp_avg.layer.weight": torch.zeros(3, 2)}
    save_folder(
        layout.step_folder(run_dir, step), {**whole(weights), "run": {"config": {"model": {}}}}, step=step, **about
    )


def test_mean_of_the_last_without_optimizer_state(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    from megatron_kaiyuan.checkpoint.load import load_common, load_weights

    for step, value in ((0, 100.0), (10, 1.0), (20, 2.0), (30, 6.0)):
        save(tmp_path, step, value)
    assert "steps 20, 30" in average_checkpoints(tmp_path, Selection(2), tmp_path / "averaged")
    weights = load_weights(tmp_path / "averaged")
    assert weights.keys() == {"layer.weight"}
    assert torch.equal(weights["layer.weight"], torch.full((3, 2), 4.0))
    assert load_common(tmp_path / "averaged")["averaged_steps"] == [20, 30]
    # The untrained step 0 is none of them.
    with pytest.raises(UserError, match="4 trained checkpoints asked for, 3 scheduled ones found"):
        average_checkpoints(tmp_path, Selection(4), tmp_path / "averaged")


def test_damage_is_refused(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.load import load_weights

    save(tmp_path, 10, 1.0)
    folder = tmp_path / "checkpoints" / "step_10"
    victim = next(folder.glob("*.distcp"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        load_weights(folder)
    with pytest.raises(UserError, match="not found"):
        load_weights(tmp_path / "checkpoints" / "step_11")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_average_is_written_over_nothing_but_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    from megatron_kaiyuan.checkpoint.load import load_weights

    run_dir = tmp_path / "runs" / "mine"
    for step, value in ((10, 1.0), (20, 2.0), (30, 6.0)):
        save(run_dir, step, value)
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    newest = run_dir / "checkpoints" / "step_30"
    for output in (
        Path("runs"),
        run_dir,
        Path("."),
        Path(".."),
        run_dir / "checkpoints",
        newest,
        Path("runs/other/notes.txt"),
    ):
        for force in (False, True):
            with pytest.raises(UserError, match=r"move it away|names no file or folder of its own"):
                average_checkpoints(run_dir, Selection(2), output, force)
            assert tree(tmp_path) == before

    output = run_dir / "averaged"
    average_checkpoints(run_dir, Selection(2), output)
    average_checkpoints(run_dir, Selection(2), output)
    with pytest.raises(UserError, match="averaged: holds an averaged checkpoint already, made from something else"):
        average_checkpoints(run_dir, Selection(3), output)
    assert torch.equal(load_weights(output)["layer.weight"], torch.full((3, 2), 4.0))
    average_checkpoints(run_dir, Selection(3), output, force=True)
    assert torch.equal(load_weights(output)["layer.weight"], torch.full((3, 2), 3.0))
    (output / "README.md").write_text("about these weights")
    with pytest.raises(UserError, match=r"README\.md: is not part of an averaged checkpoint"):
        average_checkpoints(run_dir, Selection(2), output, force=True)
    assert sorted(path.name for path in run_dir.iterdir()) == ["averaged", "checkpoints"]


def test_which_steps_are_averaged(tmp_path: Path) -> None:
    """A stop at 25, `save_now` at 41 and 42, and the end at 47 between scheduled steps, ten apart."""
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints, select

    for step in (0, 10, 20, 25, 30, 40, 41, 42, 47):
        save(tmp_path, step, float(step), scheduled=step % 10 == 0)
    assert select(tmp_path, Selection(3)) == [20, 30, 40]
    assert select(tmp_path, Selection(2, stride=20)) == [20, 40]
    assert select(tmp_path, Selection(steps=(47, 25))) == [25, 47]
    line = average_checkpoints(tmp_path, Selection(4), tmp_path / "averaged")
    assert "mean of steps 10, 20, 30, 40 (without the newer 41, 42, 47) in " in line
    line = average_checkpoints(tmp_path, Selection(steps=(10, 25, 47)), tmp_path / "some")
    assert "mean of steps 10, 25, 47 (unevenly spaced) in " in line
    for wanted, message in (
        (Selection(5), "5 trained checkpoints asked for, 4 scheduled ones found"),
        (Selection(3, stride=20), "holds no scheduled step_0 for --last 3 --stride 20"),
        (Selection(2, stride=7), "holds no scheduled step_33"),
        (Selection(steps=(10, 11)), "holds no step_11"),
    ):
        with pytest.raises(UserError, match=message):
            select(tmp_path, wanted)


def test_steps_of_an_older_version_and_copies_under_another_name(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints, select

    for step in (10, 20, 25, 30):
        save(tmp_path, step, float(step))
    (tmp_path / "config.yaml").write_text("checkpoint: {save_every_steps: 10}\n")
    shutil.copytree(tmp_path / "checkpoints" / "step_10", tmp_path / "checkpoints" / "step_40")
    assert select(tmp_path, Selection(3)) == [10, 20, 30]
    assert "mean of steps 20, 30 in " in average_checkpoints(tmp_path, Selection(2), tmp_path / "averaged")
    with pytest.raises(UserError, match="holds no step_40"):
        select(tmp_path, Selection(steps=(40,)))


def test_reading_beside_a_run_that_prunes_is_whole_or_one_line(tmp_path: Path) -> None:
    """At many moments: a step loses its name, then its files."""
    from megatron_kaiyuan.checkpoint.difference import difference
    from megatron_kaiyuan.checkpoint.load import load_common, load_weights, stored_tensors
    from megatron_kaiyuan.checkpoint.retention import Retention, prune

    kept = [save(tmp_path / "kept", step, 1.0) for step in (10, 20, 30)]
    folder = tmp_path / "run" / "checkpoints" / "step_10"
    readers: list[Callable[[Path], object]] = [
        load_weights,
        load_common,
        stored_tensors,
        lambda step: difference(step, tmp_path / "kept" / "checkpoints" / "step_20"),
    ]
    refused = 0
    for number in range(80):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "kept" / "checkpoints", folder.parent)
        wait = number * 0.0004

        def remove(wait: float = wait) -> None:
            time.sleep(wait)
            prune(tmp_path / "run", Retention(keep_last=2), lambda *_: None)

        pruning = threading.Thread(target=remove)
        pruning.start()
        try:
            readers[number % len(readers)](folder)
        except UserError as error:
            assert "step_10" in str(error)
            refused += 1
        pruning.join()
    assert 0 < refused < 80 and len(kept) == 3


def test_a_checkpoint_that_a_run_prunes_meanwhile_is_named(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.load import load_weights, removed_meanwhile

    save(tmp_path, 10, 1.0)
    folder = tmp_path / "checkpoints" / "step_10"
    with pytest.raises(UserError, match=r"step_10.*: was removed while it was read"), removed_meanwhile(folder):
        shutil.rmtree(folder)
        (folder / "common.pt").read_bytes()
    with pytest.raises(UserError, match="checkpoint not found"):
        load_weights(folder)
    # Another fault is none of its business.
    with pytest.raises(FileNotFoundError), removed_meanwhile(tmp_path):
        (tmp_path / "manifest.json").write_text("{}")
        (tmp_path / "other").read_bytes()


def mean_of(tmp_path: Path, weighting: Weighting, wanted: Selection | None = None) -> tuple[str, float, dict]:
    """Summary, value and manifest of an average of all scheduled steps."""
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    from megatron_kaiyuan.checkpoint.load import load_weights
    from megatron_kaiyuan.checkpoint.verify import read_manifest

    output = tmp_path / "averaged"
    line = average_checkpoints(tmp_path, wanted or Selection(3), output, True, weighting)
    (value,) = {float(one) for one in load_weights(output)["layer.weight"].flatten()}
    return line, value, read_manifest(output)


def test_kinds_and_what_the_manifest_says_of_them(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection
    from megatron_kaiyuan.checkpoint.listing import averages_as_table, list_averages
    from megatron_kaiyuan.checkpoint.verify import read_manifest
    from megatron_kaiyuan.checkpoint.weighting import Weighting

    # The batch doubled after step 20.
    for step, value, tokens in ((10, 1.0, 100), (20, 2.0, 200), (30, 6.0, 400)):
        save(tmp_path, step, value, tokens=tokens)
    seals = {str(step): read_manifest(tmp_path / "checkpoints" / f"step_{step}")["seal"] for step in (10, 20, 30)}
    line, value, manifest = mean_of(tmp_path, Weighting("ema", decay=0.5))
    assert "EMA of steps 10, 20, 30 in " in line
    assert value == pytest.approx((0.25 * 1 + 0.5 * 2 + 6) / 1.75)
    assert manifest["averaged_steps"] == [10, 20, 30] and manifest["tokens"] == 400
    assert manifest["average"]["sources"] == seals and manifest["average"]["decay"] == 0.5
    assert manifest["average"]["weights"] == pytest.approx({"10": 1 / 7, "20": 2 / 7, "30": 4 / 7})
    _, value, _ = mean_of(tmp_path, Weighting("ema", over="tokens", decay=0.5, decay_per=100))
    assert value == pytest.approx((0.125 * 1 + 0.25 * 2 + 6) / 1.375)
    _, value, _ = mean_of(tmp_path, Weighting("ema", over="steps", decay=0.9))
    assert value == pytest.approx((0.9**20 * 1 + 0.9**10 * 2 + 6) / (0.9**20 + 0.9**10 + 1))
    # Updates of 1 and of 4: the decay's mean over the first half is 1 - 2/3 sqrt(1/2) = 0.5286, over both 1/3.
    line, value, _ = mean_of(tmp_path, Weighting("one_minus_sqrt"))
    assert "1-sqrt mean of steps 10, 20, 30 in " in line
    assert value == pytest.approx(1 + 0.52859548 * 1 + (2 / 3 - 0.52859548) * 4, rel=1e-6)
    _, over_tokens, _ = mean_of(tmp_path, Weighting("one_minus_sqrt", over="tokens"))
    assert over_tokens != pytest.approx(value)
    # In the order of --steps.
    wanted = Selection(steps=(30, 10))
    line, value, _ = mean_of(tmp_path, Weighting("weighted", coefficients=(3.0, 1.0)), wanted)
    assert "weighted mean of steps 10, 30 in " in line and value == pytest.approx((3 * 6 + 1) / 4)
    assert averages_as_table(list_averages(tmp_path)).startswith(
        "averaged: weighted mean of steps 10, 30, weights 0.250, 0.750"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ema"}, "--decay: it and --kind ema belong together"),
        ({"decay": 0.5}, "--decay: it and --kind ema belong together"),
        ({"kind": "ema", "decay": 1.0}, "--decay 1.0: write a number between 0 and 1"),
        ({"kind": "ema", "decay": math.nan}, "--decay nan: write a number between 0 and 1"),
        ({"kind": "ema", "decay": 0.5, "decay_per": 0.0}, "--decay-per 0.0: write a number above 0"),
        ({"decay_per": 2.0}, "--decay-per: only --kind ema has a decay"),
        ({"over": "tokens"}, "--over tokens: the weights of --kind equal need no distance"),
        ({"kind": "weighted"}, "--coefficients: they and --kind weighted belong together"),
        ({"coefficients": (1.0,)}, "--coefficients: they and --kind weighted belong together"),
        ({"kind": "weighted", "coefficients": (1.0, -1.0)}, "--coefficients: -1.0 is not a number from 0 up"),
        ({"kind": "weighted", "coefficients": (1.0, math.nan)}, "--coefficients: nan is not a number from 0 up"),
        ({"kind": "weighted", "coefficients": (0.0, 0.0)}, "--coefficients: their sum is not a positive number"),
        ({"kind": "weighted", "coefficients": (1.0, 1.0)}, r"2 for 3 checkpoints \(steps 10, 20, 30\); write one for"),
        ({"kind": "ema", "decay": 0.5, "over": "tokens"}, "--over tokens: the manifests of these checkpoints do not"),
    ],
)
def test_what_fits_no_average_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    from megatron_kaiyuan.checkpoint.weighting import Source, Weighting

    with pytest.raises(UserError, match=message):
        Weighting(**options).weights([Source(step, tmp_path, 7, "") for step in (10, 20, 30)])


def test_checkpoints_that_cannot_be_averaged_are_named(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    from megatron_kaiyuan.checkpoint.load import whole
    from megatron_kaiyuan.checkpoint.save import save_folder

    save(tmp_path, 10, 1.0)
    save(tmp_path, 20, math.nan)
    save_folder(
        tmp_path / "checkpoints" / "step_30",
        {**whole({"layer.weight": torch.ones(3, 3)}), "run": {"config": {"model": {}}}},
        step=30,
    )
    for wanted, message in (
        (Selection(steps=(10, 10)), "--steps: names 10 twice"),
        (Selection(steps=(10, 20)), "step_20: layer.weight holds a value that is not finite; leave this step out"),
        (Selection(steps=(10, 30)), "step_30: is of another network than .*step_10 .layer.weight is not in both"),
    ):
        with pytest.raises(UserError, match=message):
            average_checkpoints(tmp_path, wanted, tmp_path / "averaged")
    assert not (tmp_path / "averaged").exists()


# `save`: 3 checkpoints, each with 12 layers of two matrices and a large embedding, in pieces as a run does. `average`:
# of them; prints the bytes of a model and by how much the average raised the peak of the process.
_PEAK = """
import resource, sys
from pathlib import Path
import torch
from megatron_kaiyuan import platform
device = platform.activate("cpu")
from megatron_kaiyuan.cluster.groups import single_process
run_dir = Path(sys.argv[2])
shapes = {"embedding": (1, 8192, 1024), "decoder.fc1": (12, 4096, 1024), "decoder.fc2": (12, 1024, 4096)}
def save(step):
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron_kaiyuan.checkpoint.save import save_folder
    pieces = {}
    for name, (layers, rows, columns) in shapes.items():
        for layer in range(layers):
            one = torch.full((rows, columns), float(step + layer))
            place = (0, layer, layers)
            pieces[f"{name}{layer}"] = ShardedTensor.from_rank_offsets(name, one, place, prepend_axis_num=1)
    content = {**pieces, "run": {"config": {"model": {}}}}
    save_folder(run_dir / "checkpoints" / f"step_{step}", content, step=step)
with single_process(device):
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    if sys.argv[1] == "save":
        for step in (10, 20, 30):
            save(step)
        raise SystemExit
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    average_checkpoints(run_dir, Selection(3), run_dir / "averaged")
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(sum(4 * a * b * c for a, b, c in shapes.values()), peak - before)
"""


@pytest.mark.slow
def test_the_memory_is_that_of_one_model(tmp_path: Path) -> None:
    """The mean itself, and a few batches: what is read of two checkpoints, the sum in FP64, the mean of the batch."""
    from megatron_kaiyuan.checkpoint.average import _BATCH_BYTES

    for what in ("save", "average"):
        command = [sys.executable, "-c", _PEAK, what, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    model, peak = map(int, done.stdout.split()[-2:])
    print(f"{peak / model:.2f} of a model of {model / 1e6:.0f} MB")
    assert model > 6 * _BATCH_BYTES and peak < model + 6 * _BATCH_BYTES
