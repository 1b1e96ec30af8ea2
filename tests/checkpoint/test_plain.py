"""Checkpoints whose manifest is right and whose pickles are not."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.metadata

from megatron_kaiyuan import platform
from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import verify
from megatron_kaiyuan.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


class Attack:
    """Makes the file `touched` when it is unpickled by whoever trusts it."""

    def __init__(self, touched: Path):
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.touched), "w")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    from megatron_kaiyuan.checkpoint.load import whole
    from megatron_kaiyuan.checkpoint.save import save_folder

    objects = {"state": ShardedObject("state", {"of": "an object"}, (1,), (0,))}
    save_folder(tmp_path / "step_1", {**whole({"layer.weight": torch.ones(3)}), **objects, "run": {"config": {}}})
    return tmp_path / "step_1"


def rewrite_metadata(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / ".metadata"
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))


def assert_refused(folder: Path, *words: str) -> None:
    """By everything that loads, before anything of it was unpickled by somebody who trusts it."""
    from megatron_kaiyuan.checkpoint.load import load_common, load_sharded, load_weights, whole

    layout.write_manifest(folder)
    verify(folder)
    for load in (
        load_common,
        load_weights,
        lambda folder: load_sharded(folder, whole({"layer.weight": torch.zeros(3)})),
    ):
        with pytest.raises(UserError) as caught:
            load(folder)
        assert all(word in str(caught.value) for word in words), caught.value
    assert not (folder.parent / "touched").exists()


def test_what_we_write_is_plain(folder: Path) -> None:
    from megatron_kaiyuan.checkpoint.load import load_common, load_weights

    assert load_common(folder)["run"] == {"config": {}}
    assert load_weights(folder)["layer.weight"].tolist() == [1, 1, 1]


def test_members_of_enumerations_as_another_python_writes_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.0 to 3.11.3, Debian 12's among them: getattr(class, name)."""
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    from megatron_kaiyuan.checkpoint.load import load_weights

    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name)))
    rewrite_metadata(folder, lambda metadata: metadata)
    assert b"getattr" in (folder / ".metadata").read_bytes()
    layout.write_manifest(folder)
    assert load_weights(folder)["layer.weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("owner", "name"), [(torch.Size, "numel"), (torch.distributed.checkpoint.metadata.Metadata, "mro")]
)
def test_getattr_reaches_nothing_else(folder: Path, owner: Any, name: str) -> None:
    class Reach:
        def __reduce__(self) -> Any:
            return getattr, (owner, name)

    def attack(metadata: Any) -> Any:
        metadata.planner_data = Reach()
        return metadata

    rewrite_metadata(folder, attack)
    assert_refused(folder, ".metadata", "asks", name)


def test_metadata_that_would_run_code(folder: Path) -> None:
    def attack(metadata: Any) -> Any:
        metadata.planner_data = Attack(folder.parent / "touched")
        return metadata

    rewrite_metadata(folder, attack)
    assert_refused(folder, ".metadata", "refers to", ".open")


def test_metadata_that_are_something_else(folder: Path) -> None:
    rewrite_metadata(folder, lambda metadata: [1, 2])
    assert_refused(folder, ".metadata", "holds a list")
    (folder / ".metadata").write_bytes(b"\x80\x04")
    assert_refused(folder, ".metadata")


def test_common_state_that_would_run_code(folder: Path) -> None:
    torch.save({"run": Attack(folder.parent / "touched")}, folder / "common.pt")
    assert_refused(folder, "common.pt", "Weights only load failed")


def test_an_object_among_the_shards_that_would_run_code(folder: Path) -> None:
    content = io.BytesIO()
    torch.save([Attack(folder.parent / "touched")], content)
    shard = next(folder.glob("*.distcp"))
    offset = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + content.getvalue())

    def attack(metadata: Any) -> Any:
        (index,) = [index for index in metadata.storage_data if index.fqn.startswith("state/")]
        metadata.storage_data[index].offset = offset
        metadata.storage_data[index].length = len(content.getvalue())
        return metadata

    rewrite_metadata(folder, attack)
    assert_refused(folder, ".distcp", "Weights only load failed")


@pytest.mark.parametrize("place", ["../elsewhere.distcp", "/etc/passwd", "not_listed.distcp"])
def test_metadata_that_lead_elsewhere(place: str, folder: Path) -> None:
    def attack(metadata: Any) -> Any:
        for entry in metadata.storage_data.values():
            entry.relative_path = place
        return metadata

    rewrite_metadata(folder, attack)
    assert_refused(folder, ".metadata", place, "not in the manifest")
