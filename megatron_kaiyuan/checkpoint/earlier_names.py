"""Checkpoints of earlier versions under the names of this one.

Files on disk stay as they are. Only `.metadata` name the tensors: what reads them under current names loads weights and
optimizer state as if this version had written them.
"""

from __future__ import annotations

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from megatron_kaiyuan.network import current_name


def use_current_names(metadata: Metadata) -> str | None:
    """Rename the tensors that metadata describe.

    Args:
        metadata: changed in place.

    Returns:
        What is wrong with them, in words, and then nothing is changed; None: nothing.
    """
    entries = {current_name(name): entry for name, entry in metadata.state_dict_metadata.items()}
    if len(entries) < len(metadata.state_dict_metadata):
        (name, *_) = (name for name in metadata.state_dict_metadata if current_name(name) != name)
        return f"it holds {name} and {current_name(name)}, which are one weight"
    metadata.state_dict_metadata = entries
    metadata.storage_data = {
        MetadataIndex(current_name(index.fqn), index.offset, index.index): place
        for index, place in (metadata.storage_data or {}).items()
    }
    return None
