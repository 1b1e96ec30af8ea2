"""From a checkpoint to a Hugging Face folder, compared with the megatron-core network it came from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from megatron_kaiyuan.checkpoint.find import find_checkpoint
from megatron_kaiyuan.checkpoint.load import load_common, load_weights, model_of
from megatron_kaiyuan.checkpoint.network import load_network
from megatron_kaiyuan.checkpoint.verify import read_manifest
from megatron_kaiyuan.data.tokenizer_identity import Tokenizer, compare_folder
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.compare import largest_logit_difference
from megatron_kaiyuan.export.huggingface import EXPORTED, FORMAT, export_model
from megatron_kaiyuan.export.loading import tokenizer_file
from megatron_kaiyuan.outputs import Output, check, files_identity, identity_of, recorded_folder

log = logging.getLogger(__name__)

_COMPARED_SEQUENCES, _COMPARED_LENGTH = 2, 128


def export_checkpoint(
    folder: Path, output: Path, tokenizer_folder: Path | None, force: bool = False, step: int | None = None
) -> str:
    """Export a checkpoint, averaged or one of a run, and report how far its logits are from megatron-core's.

    One process; process groups are initialised. Both networks compute in FP32 on random token ids.

    Args:
        folder: of a checkpoint, or of a run.
        output: a new folder, or an earlier export of the same checkpoint and tokenizer.
        force: an export of another checkpoint may be replaced.
        step: of a run; None: its newest.

    Raises:
        UserError: the checkpoint is missing or damaged, cannot be represented, or has corpora of another
            tokenizer; or `output` holds something else.
    """
    found = find_checkpoint(folder, step)
    folder = found.folder
    identity = identity_of(
        read_manifest(folder)["seal"], files_identity([tokenizer_folder] if tokenizer_folder else [])
    )
    # Before the weights are read, which takes long.
    check(Output(output, EXPORTED), identity, recorded_folder(FORMAT), force)
    weights, run = load_weights(folder), load_common(folder)["run"]
    if tokenizer_folder:
        check_tokenizer(run.get("tokenizer"), tokenizer_folder, folder)
    model = model_of(folder, run)
    export_model(weights, model, output, tokenizer_folder, identity, force)
    network = load_network(folder, model)
    length = min(_COMPARED_LENGTH, model.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    token_ids_bs = torch.randint(model.vocab_size, (_COMPARED_SEQUENCES, length), generator=generator)
    position_ids_bs = torch.arange(length).expand(_COMPARED_SEQUENCES, -1)
    difference = largest_logit_difference(output, lambda ids: network(ids, position_ids_bs, None), token_ids_bs)
    parameters = sum(tensor.numel() for tensor in weights.values())
    return (
        f"export: {found.name}: {parameters:,} parameters in {output}, largest logit difference to megatron-core "
        f"{difference:.2e}"
    )


def check_tokenizer(trained_on: Tokenizer | None, tokenizer_folder: Path, checkpoint: Path) -> None:
    """Compare a folder's tokenizer with the one of the corpora that a checkpoint was trained on; None: unknown.

    Raises:
        UserError: they are two, or there is none in the folder.
    """
    tokenizer_file(tokenizer_folder)
    found = "unknown" if trained_on is None else compare_folder(trained_on, tokenizer_folder)
    if found == "other":
        assert trained_on is not None
        raise UserError(
            f"{tokenizer_folder}: is not the tokenizer that made the corpora of {checkpoint} ({trained_on['file']}, "
            f"fingerprint {trained_on['fingerprint']}); name the folder of that one"
        )
    if found == "unknown":
        log.warning(
            f"{tokenizer_folder}: cannot be compared with the tokenizer of {checkpoint}'s corpora, which is not known"
        )
