"""Files of weights, written piece by piece, against the library that reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from megatron_kaiyuan.export.shards import INDEX, Described, SafetensorsFile, ShardedFolder

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.randn(5).bfloat16(),
    "c": torch.randn(2, 3, 2).half(),
    "d": torch.tensor([-3, 4], dtype=torch.int8),
    "e": torch.tensor([1 << 30, -7], dtype=torch.int32),
}


def described(tensors: dict[str, torch.Tensor]) -> dict[str, Described]:
    return {name: Described(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("seed", range(5))
def test_pieces_in_any_order_make_the_file_that_the_library_reads(seed: int, tmp_path: Path) -> None:
    drawn = random.Random(seed)
    pieces = [(name, row) for name, tensor in TENSORS.items() for row in range(len(tensor))]
    drawn.shuffle(pieces)
    file = SafetensorsFile(tmp_path / "x.safetensors", described(TENSORS))
    for name, row in pieces:
        tensor = TENSORS[name]
        file.write(name, tensor[row : row + 1], row * tensor[0].numel())
    file.close()
    found = read(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in TENSORS.items())


def test_shards_hold_at_most_their_size_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    tensors = {f"w{number}": torch.full((number + 1, 10), float(number)) for number in range(12)}
    folder = ShardedFolder(tmp_path, described(tensors), max_shard_bytes=400)
    for name, tensor in tensors.items():
        folder.write(name, tensor)
    folder.close()
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[-1].endswith(f"-of-{len(files):05}.safetensors")
    for name in files:
        found = read(tmp_path / name)
        assert len(found) == 1 or sum(tensor.nbytes for tensor in found.values()) <= 400
        assert all(
            index["weight_map"][key] == name and torch.equal(tensor, tensors[key]) for key, tensor in found.items()
        )


def test_one_file_has_the_plain_name_and_no_index(tmp_path: Path) -> None:
    ShardedFolder(tmp_path, described(TENSORS), max_shard_bytes=1000).close()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
