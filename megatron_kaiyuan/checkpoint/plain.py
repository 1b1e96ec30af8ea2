"""Nothing in a checkpoint runs code: its pickles may only build plain data.

torch reads `.metadata` with `pickle.load`, megatron-core reads the objects among the shards with
`weights_only=False`, and both trust what they find. Checksums find damage, not malice: who can write a shard can write
a manifest. So each pickle is read here first, by an unpickler that knows the few classes that torch_dist is made of;
a name of anything else refuses the checkpoint before megatron-core opens it.
"""

from __future__ import annotations

import enum
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_kaiyuan.checkpoint.earlier_names import use_current_names
from megatron_kaiyuan.checkpoint.metadata_form import BackendForm, wrong_metadata
from megatron_kaiyuan.checkpoint.verify import read_manifest
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import require_form

METADATA, COMMON, BACKEND = ".metadata", "common.pt", "metadata.json"
_REMEDY = "use it only if you know where it is from"
_DCP = "torch.distributed.checkpoint"
_CLASSES = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    *((f"{_DCP}.planner", name) for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")),
    *(
        (f"{_DCP}.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


def _member(kind: Any, name: str) -> enum.Enum:
    """Return the member of an enumeration; in the place of `getattr`, which would reach anything."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise pickle.UnpicklingError(f"it asks {excerpt(kind)} for {excerpt(name)}")
    return kind[name]


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Python 3.11.0 to 3.11.3, Debian 12's among them, write members of enumerations so.
        if (module, name) == ("builtins", "getattr"):
            return _member
        known = (module, name) in _CLASSES
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def require_plain(folder: Path) -> Metadata:
    """Refuse a checkpoint whose pickles are more than data, or whose metadata name files that are not its own.

    Returns:
        The metadata, under the names of this version.

    Raises:
        UserError: naming the file and what was found in it.
    """
    sizes = {name: entry["bytes"] for name, entry in read_manifest(folder)["files"].items()}
    metadata = _read_metadata(folder / METADATA, sizes)
    require_form(folder / BACKEND, read_json(folder / BACKEND, "description of a checkpoint"), BackendForm, _REMEDY)
    _read_weights_only(folder / COMMON, folder / COMMON)
    for index, place in (metadata.storage_data or {}).items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            path = folder / place.relative_path
            with open(path, "rb") as file:
                file.seek(place.offset)
                _read_weights_only(io.BytesIO(file.read(place.length)), path)
    return metadata


def _read_metadata(path: Path, sizes: dict[str, int]) -> Metadata:
    try:
        with open(path, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
    # An unpickler that meets other bytes than it wrote raises nearly anything, MemoryError among it.
    except Exception as error:
        raise _refusal(path, f"{type(error).__name__}: {excerpt(error)}") from error
    if (why := wrong_metadata(metadata, sizes) or use_current_names(metadata)) is not None:
        raise _refusal(path, excerpt(why))
    return metadata


def _read_weights_only(source: Path | io.BytesIO, path: Path) -> None:
    try:
        torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refusal(path, excerpt(str(error).partition("\n")[0] or type(error).__name__)) from error


def _refusal(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: is not what a checkpoint of this project holds ({why}); {_REMEDY}",
        every_rank=True,
    )
