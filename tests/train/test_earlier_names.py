"""Checkpoints of earlier versions, whose weights had other names: nothing is lost or changed by reading them.

Before, the norm that closes a sub-layer was a part of its last linear. The files of such a checkpoint are those of
today to the byte, but for the names in `.metadata`, which these tests write as they were.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_kaiyuan import platform
from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.saved_state import assert_same_state, load
from tests.helpers.training.small_run import losses, start_from, succeed, train

EARLIER = {
    "self_attention.post_norm.weight": "self_attention.linear_proj.post_norm.weight",
    "mlp.post_norm.weight": "mlp.linear_fc2.post_norm.weight",
}
GAINS = [f"decoder.layers.{name}" for name in EARLIER]


def earlier_name(name: str) -> str:
    for now, before in EARLIER.items():
        if name.endswith(now):
            return name.removesuffix(now) + before
    return name


def rename(folder: Path, renamed: Callable[[str], str]) -> Path:
    """Write names of a checkpoint's tensors otherwise; the folder."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.state_dict_metadata = {renamed(name): entry for name, entry in metadata.state_dict_metadata.items()}
    metadata.storage_data = {
        MetadataIndex(renamed(index.fqn), index.offset, index.index): place
        for index, place in metadata.storage_data.items()
    }
    path.write_bytes(pickle.dumps(metadata))
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    about = {name: manifest[name] for name in ("step", "tokens", "scheduled") if name in manifest}
    layout.write_manifest(folder, **about)
    return folder


def as_earlier(source: Path, step: int, run_dir: Path) -> Path:
    """A run with one step of another one as an earlier version wrote it; that step's folder."""
    folder = rename(start_from(source, step, run_dir) / "checkpoints" / f"step_{step}", earlier_name)
    names = pickle.loads((folder / ".metadata").read_bytes()).state_dict_metadata
    # The gains of attention and of the MLP, and three tensors of optimizer state of each.
    assert sum("linear_proj.post_norm" in name or "linear_fc2.post_norm" in name for name in names) == 8
    return folder


@pytest.fixture
def one_process():
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


@pytest.mark.parametrize(
    "overrides", [[], ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"]], ids=["dp2", "tp2"]
)
def test_resume_is_bitwise(recipe: Path, finished_run: Path, tmp_path: Path, overrides: list[str]) -> None:
    as_earlier(finished_run, 10, tmp_path / "earlier")
    start_from(finished_run, 10, tmp_path / "now")
    for name in ("earlier", "now"):
        succeed(2, recipe, f"run_dir={tmp_path / name}", "train.train_tokens=7168", *overrides)
    assert losses(tmp_path / "earlier") == losses(tmp_path / "now") and len(losses(tmp_path / "now")) == 4
    ends = [tmp_path / name / "checkpoints" / "step_14" for name in ("earlier", "now")]
    assert_same_state(*ends)
    if not overrides:
        assert losses(tmp_path / "earlier") == losses(finished_run)[10:14]
    assert set(GAINS) < load(ends[0])[0].keys()


def test_a_new_run_takes_the_gains(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    """They may be missing in a source, and would keep their initial value then."""
    source = as_earlier(finished_run, 20, tmp_path / "earlier")
    run_dir = tmp_path / "run"
    done = train(1, recipe, "--init-from", str(source), f"run_dir={run_dir}", "train.train_tokens=0")
    assert done.returncode == 0, done.stderr[-3000:]
    (ours, _), (theirs, _) = load(run_dir / "checkpoints" / "step_0"), load(finished_run / "checkpoints" / "step_20")
    for name in (name for name in ours if not name.startswith("optimizer.")):
        assert torch.equal(ours[name], theirs[name])
        assert torch.equal(ours[f"optimizer.state.param.{name}"], theirs[name])
    assert not torch.equal(ours[GAINS[0]], torch.full_like(ours[GAINS[0]], 0.1))


@pytest.mark.usefixtures("one_process")
def test_comparison_average_and_export_are_the_same(finished_run: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    from megatron_kaiyuan.checkpoint.difference import difference
    from megatron_kaiyuan.checkpoint.load import load_weights
    from megatron_kaiyuan.export.run import export_checkpoint

    last = finished_run / "checkpoints" / "step_20"
    earlier = as_earlier(finished_run, 20, tmp_path / "earlier")
    found = difference(earlier, last)
    assert found.only_in_one == [] and {moved.largest_entry for moved in found.weights} == {0.0}

    # One of its two terms is of today.
    shutil.copytree(finished_run / "checkpoints" / "step_10", tmp_path / "earlier" / "checkpoints" / "step_10")
    for name, run_dir in (("earlier_mean", tmp_path / "earlier"), ("mean", finished_run)):
        average_checkpoints(run_dir, Selection(2), tmp_path / name)
    means = [load_weights(tmp_path / name) for name in ("earlier_mean", "mean")]
    assert set(GAINS) < means[0].keys() == means[1].keys()
    assert all(torch.equal(means[0][name], means[1][name]) for name in means[1])

    for name, folder in (("earlier_model", earlier), ("model", last)):
        export_checkpoint(folder, tmp_path / name, None)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("earlier_model", "model")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("one_process")
def test_two_names_of_one_weight_are_refused(finished_run: Path, tmp_path: Path) -> None:
    """Else one of them would be taken without a word."""
    from megatron_kaiyuan.checkpoint.load import load_weights

    other = f"decoder.layers.{EARLIER['mlp.post_norm.weight']}"
    folder = start_from(finished_run, 10, tmp_path) / "checkpoints" / "step_10"
    rename(folder, lambda name: other if name == GAINS[0] else name)
    with pytest.raises(UserError, match=r"mlp.linear_fc2.post_norm.weight and .*mlp.post_norm.weight, which are one"):
        load_weights(folder)
