"""Writing safetensors files tensor by tensor, and piece by piece of a tensor, in any order.

The library writes a file from all of its tensors in memory. Here sizes are known before: the header comes first, and
each piece is written where it belongs. Format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_kaiyuan.files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.int32: "I32",
}


@dataclass(frozen=True)
class Described:
    """A tensor before it is there."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """One file, of its full size from the start; what is not written is zero."""

    def __init__(self, path: Path, tensors: Mapping[str, Described]):
        header, self._offsets, end = {"__metadata__": {"format": "pt"}}, {}, 0
        for name, tensor in tensors.items():
            place = [end, end + tensor.nbytes]
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}  # type: ignore[dict-item]
            self._offsets[name], end = end, end + tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        # The data begin at a multiple of 8, as the library has them.
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + end)
        self._file.flush()

    def write(self, name: str, tensor: torch.Tensor, first_element: int = 0) -> None:
        """Write a tensor, or a piece of its flattened elements; of the described dtype, contiguous."""
        start = self._start + self._offsets[name] + first_element * tensor.dtype.itemsize
        left = memoryview(tensor.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
        while left:
            written = os.pwrite(self._file.fileno(), left, start)
            left, start = left[written:], start + written

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class ShardedFolder:
    """The weights of a folder in files of at most `max_shard_bytes` each, with an index where there are several.

    A tensor that is larger has a file for itself.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Described], max_shard_bytes: int):
        shards: list[dict[str, Described]] = [{}]
        room = max_shard_bytes
        for name, tensor in tensors.items():
            if shards[-1] and tensor.nbytes > room:
                shards.append({})
                room = max_shard_bytes
            shards[-1][name], room = tensor, room - tensor.nbytes
        files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        if len(shards) == 1:
            files = [SINGLE]
        self._files: dict[str, SafetensorsFile] = {}
        for file, shard in zip(files, shards, strict=True):
            opened = SafetensorsFile(folder / file, shard)
            self._files |= dict.fromkeys(shard, opened)
        if len(shards) > 1:
            index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
            total = sum(tensor.nbytes for tensor in tensors.values())
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})

    def write(self, name: str, tensor: torch.Tensor, first_element: int = 0) -> None:
        """Write a tensor or a piece of it, see `SafetensorsFile.write`."""
        self._files[name].write(name, tensor, first_element)

    def close(self) -> None:
        """Finish all files."""
        for file in set(self._files.values()):
            file.close()
