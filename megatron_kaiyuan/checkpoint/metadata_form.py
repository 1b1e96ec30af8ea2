"""Does `.metadata` describe the files beside it? torch and megatron-core believe every size and place in it.

A size that is too large would be asked of the memory, a place outside of a file would be a trace in the middle of
loading. So tensors must be covered by their chunks, chunks must have a place, and places must lie in their files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_kaiyuan.forms import Form


class BackendForm(Form):
    """`metadata.json`: what megatron-core is to read the other files with."""

    model_config = ConfigDict(extra="forbid")
    sharded_backend: Literal["torch_dist"]
    sharded_backend_version: Literal[1]
    common_backend: Literal["torch"]
    common_backend_version: Literal[1]


def wrong_metadata(metadata: Any, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with unpickled metadata, in words; None: they fit the files.

    Args:
        sizes: bytes of each file of the manifest.
    """
    if not isinstance(metadata, Metadata):
        return f"it holds a {type(metadata).__name__}"
    try:
        return _wrong_places(metadata, sizes) or _wrong_entries(metadata, sum(sizes.values()))
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        return f"it is not built as torch builds it ({type(error).__name__}: {error})"


def _wrong_places(metadata: Metadata, sizes: Mapping[str, int]) -> str | None:
    if not isinstance(metadata.storage_data, dict) or not isinstance(metadata.state_dict_metadata, dict):
        return "it does not list tensors and places"
    for index, place in metadata.storage_data.items():
        if not isinstance(index, MetadataIndex) or index.fqn not in metadata.state_dict_metadata:
            return f"it places {getattr(index, 'fqn', index)!r}, which it does not describe"
        if not isinstance(place, _StorageInfo) or not isinstance(place.relative_path, str):
            return f"it gives {index.fqn} no place"
        if place.relative_path not in sizes:
            return f"it places {index.fqn} in {place.relative_path!r}, not in the manifest"
        if getattr(place, "transform_descriptors", None):
            return f"it wants {index.fqn} to be decoded by an extension"
        if not _is_count(place.offset) or not _is_count(place.length):
            return f"it places {index.fqn} at {place.offset!r}, of {place.length!r} bytes"
        if place.offset + place.length > sizes[place.relative_path]:
            return f"it places {index.fqn} past the end of {place.relative_path}"
    return None


def _wrong_entries(metadata: Metadata, room: int) -> str | None:
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(name, str):
            return f"it has a tensor called {name!r}"
        if isinstance(entry, BytesStorageMetadata):
            if MetadataIndex(name) not in metadata.storage_data:
                return f"it gives {name} no place"
        elif not isinstance(entry, TensorStorageMetadata):
            return f"it describes {name} by a {type(entry).__name__}"
        elif (why := _wrong_tensor(name, entry, metadata, room)) is not None:
            return why
    return None


def _wrong_tensor(name: str, entry: TensorStorageMetadata, metadata: Metadata, room: int) -> str | None:
    dtype = entry.properties.dtype
    if not isinstance(entry.properties, TensorProperties) or not isinstance(dtype, torch.dtype):
        return f"it gives {name} no type"
    if entry.properties.layout is not torch.strided:
        return f"it gives {name} another layout than a strided one"
    if not isinstance(entry.size, torch.Size) or min(entry.size, default=0) < 0:
        return f"{name} has the size {entry.size!r}"
    if math.prod(entry.size) * dtype.itemsize > room:
        return f"{name} of {list(entry.size)} numbers is larger than all files together"
    covered = 0
    for chunk in entry.chunks:
        if not isinstance(chunk, ChunkStorageMetadata) or not len(chunk.offsets) == len(chunk.sizes) == len(entry.size):
            return f"{name} has a chunk of another number of dimensions"
        for offset, size, whole in zip(chunk.offsets, chunk.sizes, entry.size, strict=True):
            if not _is_count(offset) or not _is_count(size) or offset + size > whole:
                return f"{name} has a chunk outside of its size {list(entry.size)}"
        if MetadataIndex(name, chunk.offsets) not in metadata.storage_data:
            return f"it gives a chunk of {name} no place"
        covered += math.prod(chunk.sizes)
    if covered != math.prod(entry.size):
        return f"the chunks of {name} hold {covered} of its {math.prod(entry.size)} numbers"
    return None


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 63
