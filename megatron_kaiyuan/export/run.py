"""From a checkpoint to a Hugging Face folder, compared with the megatron-core network it came from."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_kaiyuan.checkpoint.find import Found, find_checkpoint
from megatron_kaiyuan.checkpoint.load import Stored, load_common, model_of
from megatron_kaiyuan.checkpoint.load import Weights as StoredWeights
from megatron_kaiyuan.checkpoint.network import load_network
from megatron_kaiyuan.checkpoint.verify import read_manifest, verify
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.data.tokenizer_identity import Tokenizer, compare_folder
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.card import model_card
from megatron_kaiyuan.export.compare import largest_logit_difference
from megatron_kaiyuan.export.formats import choose_format
from megatron_kaiyuan.export.huggingface import EXPORTED, FORMAT, Form, export_model
from megatron_kaiyuan.export.loading import tokenizer_file
from megatron_kaiyuan.export.weights import WeightsOfCheckpoint
from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.outputs import Output, check, files_identity, identity_of, recorded_folder

log = logging.getLogger(__name__)

_COMPARED_SEQUENCES, _COMPARED_LENGTH = 2, 128


def export_checkpoint(
    folder: Path,
    output: Path,
    tokenizer_folder: Path | None,
    force: bool = False,
    step: int | None = None,
    weights: StoredWeights = "model",
    form: Form = Form(),  # noqa: B008 - frozen
    compare: bool = True,
) -> str:
    """Export a checkpoint, averaged or one of a run, and report how far its logits are from megatron-core's.

    One process; process groups are initialised. Weights are read and written shard by shard; the comparison builds both
    networks, which compute in FP32 from the written weights, on random token ids.

    Args:
        folder: of a checkpoint, or of a run.
        output: a new folder, or an earlier export of the same checkpoint and tokenizer, in the same form.
        force: an export of another checkpoint or form may be replaced.
        step: of a run; None: its newest.
        weights: the network's own, or their EMA.
        compare: also build both networks, in memory, and compare their logits.

    Raises:
        UserError: the checkpoint is missing or damaged, cannot be represented, or has corpora of another
            tokenizer; or `output` holds something else.
    """
    found = find_checkpoint(folder, step, weights)
    folder = found.folder
    manifest = read_manifest(folder)
    tokenizer_files = files_identity([tokenizer_folder] if tokenizer_folder else [])
    identity = identity_of(manifest["seal"], tokenizer_files, weights, asdict(form))
    # Before the weights are read, which takes long.
    check(Output(output, EXPORTED), identity, recorded_folder(FORMAT), force)
    verify(folder)
    run = load_common(folder)["run"]
    if tokenizer_folder:
        check_tokenizer(run.get("tokenizer"), tokenizer_folder, folder)
    model = model_of(folder, run)
    written_as = choose_format(model, form.format, form.dtype), form.dtype
    export_model(
        WeightsOfCheckpoint(Stored(folder, weights), model),
        model,
        output,
        tokenizer_folder,
        identity,
        force,
        form,
        card=model_card(found, model, run, manifest, written_as),
        made_from={
            name: manifest[name] for name in ("step", "tokens", "averaged_steps", "average") if name in manifest
        },
        seq_length=run["config"].get("train", {}).get("seq_length"),
        tokenizer=run.get("tokenizer"),
    )
    summary = f"export: {found.name}: {count_parameters(model):,} parameters in {output} ({', '.join(written_as)})"
    if not compare:
        return f"{summary}, logits not compared"
    return f"{summary}, {_compare(found, model, output, form.dtype)}"


def _compare(found: Found, model: ModelConfig, output: Path, dtype: str) -> str:
    """How far the folder's logits are from megatron-core's: of weights as they were, in FP32."""
    network = load_network(found.folder, model, found.weights)
    length = min(_COMPARED_LENGTH, model.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    token_ids_bs = torch.randint(model.vocab_size, (_COMPARED_SEQUENCES, length), generator=generator)
    position_ids_bs = torch.arange(length).expand(_COMPARED_SEQUENCES, -1)
    difference = largest_logit_difference(output, lambda ids: network(ids, position_ids_bs, None), token_ids_bs)
    stored = "" if dtype == "float32" else f" (weights stored in {dtype})"
    return f"largest logit difference to megatron-core {difference:.2e}{stored}"


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
