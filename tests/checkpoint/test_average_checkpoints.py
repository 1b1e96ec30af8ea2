"""Averaging real checkpoints of megatron-core."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError


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
    readers = [
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
