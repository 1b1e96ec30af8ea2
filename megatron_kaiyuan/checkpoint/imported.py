"""A Hugging Face folder of this network as a checkpoint: to start from, to evaluate, to export again.

A folder that export wrote comes back bit for bit, in the precision that its weights had where the folder holds that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kaiyuan.checkpoint.huggingface import HuggingFaceFolder, numbered_name
from megatron_kaiyuan.checkpoint.save import save_folder
from megatron_kaiyuan.checkpoint.verify import earlier_checkpoint
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.network import LAYERS, count_parameters, weight_of
from megatron_kaiyuan.outputs import Output, claim, files_identity, identity_of
from megatron_kaiyuan.versions import versions

# The field of a manifest that says so.
IMPORTED = "imported"


def import_folder(source: Path, output: Path, force: bool = False) -> str:
    """Write a checkpoint; one process, process groups initialised. Memory holds the whole model once.

    Args:
        source: what export wrote, in any format and dtype, or a Qwen3 folder of others.
        output: a new folder, or an earlier import of the same files.
        force: an import of another folder may be replaced.

    Returns:
        A one-line summary.

    Raises:
        UserError: the folder is damaged or of another architecture, or `output` holds something else.
    """
    if not (source / "config.json").is_file():
        raise UserError(f"{source}: no Hugging Face folder here (config.json is missing)")
    folder = HuggingFaceFolder(source)
    model = folder.model()
    identity = identity_of("import", files_identity([source]))
    place = Output(output, "an imported checkpoint")
    with claim(place, identity, earlier_checkpoint(IMPORTED), force=force):
        folder.verify()
        record = folder.record
        run: dict[str, Any] = {
            "config": {
                "model": model.model_dump(mode="json"),
                "train": {"seq_length": (record and record.seq_length) or model.max_position_embeddings},
            },
            "phases": [],
            "tokenizer": record.tokenizer if record else None,
            "versions": versions(),
        }
        about = {IMPORTED: folder.config.kind, "identity": identity}
        save_folder(place.path, {**_shards(folder, model), "run": run}, **about)
    return f"import: {count_parameters(model):,} parameters of {source} ({folder.config.kind}) in {output}"


def _shards(folder: HuggingFaceFolder, model: ModelConfig) -> dict[str, Any]:
    """Every weight, layers one by one in the place that they have in the stacked tensor."""
    shards: dict[str, Any] = {}
    for name in folder.megatron_names(model):
        tensor = folder.megatron_weight(name, model)
        weight = weight_of(name, model)
        index, inner = numbered_name(name)
        if tensor is None:
            raise UserError(f"{folder.folder}: holds nothing for {name}")
        if index is None and tensor.ndim == len(weight.shape) and tensor.shape[1:] == weight.shape[1:]:
            tensor = _padded(tensor, weight.shape[0])
        if tuple(tensor.shape) != weight.shape:
            raise UserError(
                f"{folder.folder}: weights for {name} make {list(tensor.shape)}, config.json {list(weight.shape)}; "
                "copy it again from where it came"
            )
        if index is None:
            shards[name] = ShardedTensor.from_rank_offsets(name, tensor)
        else:
            key = LAYERS + inner
            shards[name] = ShardedTensor.from_rank_offsets(
                key, tensor, (0, index, model.num_layers), prepend_axis_num=1
            )
    return shards


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Append rows of zeros: our vocabulary is rounded up to a multiple of 128, and no text has the new ids."""
    missing = rows - len(tensor)
    return tensor if not 0 < missing < 128 else torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
