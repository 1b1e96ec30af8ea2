"""Models to evaluate: exported folders as transformers reads them, and checkpoints as megatron-core does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from megatron_kaiyuan.checkpoint.find import Found, Weights, find_checkpoint
from megatron_kaiyuan.checkpoint.verify import read_manifest
from megatron_kaiyuan.config import ParallelConfig
from megatron_kaiyuan.config.schema import unequal_parts
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.tokenizer_identity import difference, tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.replicas import many_ranks
from megatron_kaiyuan.forms import Form, require_form
from megatron_kaiyuan.outputs import files_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_kaiyuan.evaluate.predictor import Predictor


class _Train(Form):
    seq_length: Annotated[int, Field(ge=1, lt=1 << 31)]


class _Config(Form):
    train: _Train


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies.

    Attributes:
        path: the folder that holds its weights.
        checkpoint: None for a Hugging Face folder.
    """

    path: Path
    checkpoint: Found | None = None

    @property
    def name(self) -> str:
        return str(self.path) if self.checkpoint is None else self.checkpoint.name

    @property
    def run_dir(self) -> Path | None:
        return None if self.checkpoint is None else self.checkpoint.run_dir

    @property
    def identity(self) -> Any:
        """For `identity_of`: what changes when the weights do."""
        if self.checkpoint is None:
            return files_identity([self.path])
        seal, weights = read_manifest(self.path)["seal"], self.checkpoint.weights
        return seal if weights == "model" else [seal, weights]


@dataclass(frozen=True)
class Model:
    """A model that is ready to be measured.

    Attributes:
        tokenizer: None: no text is measured.
        context: tokens that it reads if nothing else is asked for: as in training where that is known.
        longest: tokens that it can read.
    """

    predictor: Predictor
    tokenizer: PreTrainedTokenizerBase | None
    context: int
    longest: int


def find_source(path: Path, step: int | None = None, weights: Weights = "model") -> ModelSource:
    """What a path means: a Hugging Face folder, a checkpoint, or one of a run's checkpoints.

    Args:
        step: of the run; None: the newest.
        weights: of a checkpoint, the network's own or their EMA.

    Raises:
        UserError: it is none of them, or has no such weights.
    """
    if (path / "config.json").is_file():
        if step is not None:
            raise UserError(f"{path}: is an exported model, of which --step {step} chooses none; leave it out")
        if weights != "model":
            raise UserError(f"{path}: is an exported model, which has no --weights {weights}; leave it out")
        return ModelSource(path)
    if step is not None:
        found = find_checkpoint(path, step, weights)
        return ModelSource(found.folder, found)
    try:
        found = find_checkpoint(path, weights=weights)
    except UserError as error:
        raise UserError(f"{error}, and there is no exported model here (config.json is missing)") from error
    return ModelSource(found.folder, found)


@dataclass(frozen=True)
class Settings:
    """How models are loaded and read.

    Attributes:
        device: a torch device.
        parallel: how a checkpoint's network is cut over ranks; the rest of the ranks are copies of it.
        batch_size: sequences that are looked at together; None: as many as their logits leave room for.
        dtype: of an exported folder, torch's name of the type that it is held and computed in; `auto`: as it was
            exported, which is what lm-eval's own command takes.
    """

    device: Any = "cpu"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: int | None = None
    dtype: str = "float32"


def open_source(
    source: ModelSource,
    tokenizer_folder: Path | None,
    corpora: Mapping[str, IndexedCorpus],
    settings: Settings,
) -> Model:
    """Load a model; a checkpoint in FP32. Collective where there are several ranks.

    For a checkpoint a platform is active and megatron-core's groups are those of `settings.parallel`.

    Args:
        tokenizer_folder: of what is measured on text; None: nothing is.
        corpora: to be predicted, which have to be of the model's tokenizer.

    Raises:
        UserError: the weights are damaged, or a tokenizer is missing or another one.
    """
    if source.checkpoint is not None:
        found = _open_checkpoint(source, source.checkpoint.weights, tokenizer_folder, corpora, settings)
    else:
        found = _open_export(source, tokenizer_folder, corpora, settings)
    predictor = replace(found.predictor, largest_batch=settings.batch_size)
    return replace(found, predictor=predictor)


def _open_export(
    source: ModelSource, tokenizer_folder: Path | None, corpora: Mapping[str, IndexedCorpus], settings: Settings
) -> Model:
    from megatron_kaiyuan.evaluate.heldout import check_tokenizer
    from megatron_kaiyuan.evaluate.predictor import predictor_of_transformers
    from megatron_kaiyuan.export.loading import load_network, load_tokenizer

    if settings.parallel.model_parallel_size > 1:
        raise UserError(
            f"{source.path}: is an exported model, which each rank holds whole; name the checkpoint, or leave out "
            "--tensor-model-parallel-size and --pipeline-model-parallel-size"
        )
    check_tokenizer(source.path, corpora)
    tokenizer = load_tokenizer(tokenizer_folder) if tokenizer_folder else None
    network = load_network(source.path, settings.device, settings.dtype)
    longest = network.config.max_position_embeddings
    return Model(predictor_of_transformers(network), tokenizer, longest, longest)


def _open_checkpoint(
    source: ModelSource,
    weights: Weights,
    tokenizer_folder: Path | None,
    corpora: Mapping[str, IndexedCorpus],
    settings: Settings,
) -> Model:
    from megatron_kaiyuan.checkpoint.choose import verify_together
    from megatron_kaiyuan.checkpoint.load import load_common, model_of
    from megatron_kaiyuan.checkpoint.network import load_network
    from megatron_kaiyuan.checkpoint.plain import COMMON
    from megatron_kaiyuan.checkpoint.verify import verify
    from megatron_kaiyuan.evaluate.predictor import predictor_of_megatron
    from megatron_kaiyuan.export.loading import load_tokenizer
    from megatron_kaiyuan.export.run import check_tokenizer

    if not many_ranks():
        verify(source.path)
    elif problems := verify_together(source.path):
        raise UserError(problems[0], every_rank=True)
    run = load_common(source.path)["run"]
    for corpus in corpora.values():
        if different := difference(run.get("tokenizer"), tokenizer_of_corpus(corpus.prefix)):
            raise UserError(
                f"{corpus.prefix}: made by another tokenizer than the corpora of {source.name} ({different}); evaluate "
                "on corpora of the model's tokenizer"
            )
    tokenizer = None
    if tokenizer_folder is not None:
        check_tokenizer(run.get("tokenizer"), tokenizer_folder, source.path)
        tokenizer = load_tokenizer(tokenizer_folder)
    config = model_of(source.path, run)
    if why := unequal_parts(config, settings.parallel):
        raise UserError(f"{source.name}: {why}")
    network = load_network(source.path, config, weights, settings.parallel).to(settings.device)
    predictor = predictor_of_megatron([network], config.padded_vocab_size, settings.device)
    seq_length = require_form(source.path / COMMON, run["config"], _Config).train.seq_length
    return Model(predictor, tokenizer, seq_length, config.max_position_embeddings)
