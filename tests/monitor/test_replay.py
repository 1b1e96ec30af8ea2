"""One part alone does what it did in the network; and every mistake with a capsule is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_sealed_json
from tests.helpers.processes.rank_server import run
from tests.helpers.training.small_capsule import PLACES, make_capsule


def replayed(folder: Path, precision: str | None = None) -> Any:
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.monitor.replay import replay

    return replay(folder, platform.current(), precision)


@pytest.mark.parametrize("changes", [{}, {"apart": True}, {"sandwich_norm": False, "logits_soft_cap": None}])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("part", PLACES)
@pytest.mark.usefixtures("one_process")
def test_a_part_alone_is_that_of_the_network(
    part: str, direction: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    expected = make_capsule(tmp_path / "capsule", part, direction, **changes)
    result = replayed(tmp_path / "capsule")
    found = {(line.seen.tensor, line.seen.direction): line.peak for line in result.lines}
    if direction == "forward":
        expected = {name: peak for name, peak in expected.items() if name[1] == "forward"}
    assert list(found.items()) == list(expected.items())
    assert {line.seen.layer for line in result.lines} == {PLACES[part][1]}
    assert all(line.peak == line.peak_fp32 for line in result.lines)
    assert result.first is None and not result.reproduced


@pytest.mark.usefixtures("one_process")
def test_logits_beyond_the_range_whose_loss_is_finite(tmp_path: Path) -> None:
    """The soft cap hides them: tanh(inf) is 1."""
    peaks = make_capsule(tmp_path / "capsule", "head", "forward", "fp16", head_times=3e5)
    assert peaks["logits", "forward"] == float("inf") and peaks["losses", "forward"] < 100
    result = replayed(tmp_path / "capsule")
    assert result.first.tensor == "logits" and result.first.module == "output_layer"
    assert replayed(tmp_path / "capsule", "fp32").first is None
    assert replayed(tmp_path / "capsule", "bf16").first is None


@pytest.fixture
def capsule(tmp_path: Path, one_process: None) -> Path:
    make_capsule(tmp_path / "capsule", "layer", "backward", "fp16")
    return tmp_path / "capsule"


@pytest.mark.usefixtures("one_process")
def test_a_capsule_of_an_earlier_version_has_the_names_of_this_one(capsule: Path) -> None:
    """Before, the norm that closes a sub-layer was a part of its last linear."""
    from megatron_kaiyuan.monitor.capsule import write_capsule

    expected = replayed(capsule)
    manifest = json.loads((capsule / "capsule.json").read_text())
    tensors = torch.load(capsule / "tensors.pt", weights_only=True)
    earlier = {"self_attention": "self_attention.linear_proj.post_norm", "mlp": "mlp.linear_fc2.post_norm"}
    for sub_layer, name in earlier.items():
        tensors["weights"][f"{name}.weight"] = tensors["weights"].pop(f"{sub_layer}.post_norm.weight")
    manifest["seen"]["module"] = earlier["mlp"]
    kept = ("message", "seen", "precision", "model", "z_loss")
    write_capsule(capsule, {name: manifest[name] for name in kept}, tensors)
    found = replayed(capsule)
    assert found.recorded.module == "mlp.post_norm"
    peaks = [{line.seen: line.peak for line in result.lines} for result in (found, expected)]
    assert peaks[0] == peaks[1]


def command(*words: object) -> Any:
    return run(1, ["-m", "megatron_kaiyuan.cli", "replay", *words])


def test_the_command_ends_with_1_where_nothing_is_reproduced(capsule: Path) -> None:
    done = command(capsule, "--platform", "cpu")
    assert (done.returncode, done.stderr) == (1, "")
    first, *_, last = done.stdout.splitlines()
    assert first == "recorded: a test" and last.startswith("replay: not reproduced in fp16 on cpu: every tensor stays")
    done = command(capsule, "--json", "--precision", "bf16")
    content = json.loads(done.stdout)
    assert done.returncode == 1 and content["reproduced"] is False and content["precision"] == "bf16"
    assert content["recorded"]["seen"]["tensor"] == "mlp_output" and len(content["tensors"]) > 40


def test_mistakes_are_one_line(capsule: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.monitor.capsule import read_capsule

    manifest = json.loads((capsule / "capsule.json").read_text())
    damages = {
        "missing": (lambda folder: shutil.rmtree(folder), "overflow capsule not found"),
        "no-tensors": (lambda folder: (folder / "tensors.pt").unlink(), "copy the whole folder of the capsule"),
        "cut": (lambda folder: cut(folder / "tensors.pt"), "tensors.pt: damaged, its checksum is"),
        "changed": (lambda folder: change(folder / "capsule.json"), "capsule.json: damaged, its checksum is"),
        "foreign": (lambda folder: write(folder, {"format": "other"}), "is not an overflow capsule"),
        "older": (lambda folder: write(folder, {**manifest, "version": 1}), "has version 1, and this is for version 2"),
        "unsealed": (lambda folder: (folder / "capsule.json").write_text("{}"), "is no overflow capsule"),
    }
    for name, (damage, message) in damages.items():
        folder = tmp_path / name
        shutil.copytree(capsule, folder)
        damage(folder)
        with pytest.raises(UserError) as error:
            read_capsule(folder)
        assert message in str(error.value) and str(folder) in str(error.value)
    done = command(tmp_path / "cut")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    other = {**manifest, "model": {**manifest["model"], "hidden_size": 128}}
    write(tmp_path / "cut", other)
    shutil.copy(capsule / "tensors.pt", tmp_path / "cut")
    with pytest.raises(UserError, match="its weights are not those of its model"):
        replayed(tmp_path / "cut")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path) -> None:
    path.write_text(path.read_text().replace('"layer": 2', '"layer": 1'))


def write(folder: Path, content: dict[str, Any]) -> None:
    write_sealed_json(folder / "capsule.json", content)
