"""Every section of a recipe in one class, and the checks that need two of them. Names are Megatron's where it has one.

Each section is in the file of its name, with the unit, default and limits of every field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_kaiyuan.config.backend import BackendConfig
from megatron_kaiyuan.config.checkpoint import CheckpointConfig
from megatron_kaiyuan.config.data import DataConfig
from megatron_kaiyuan.config.ema import EmaConfig
from megatron_kaiyuan.config.faults import FaultsConfig
from megatron_kaiyuan.config.model import ModelConfig
from megatron_kaiyuan.config.monitor import MonitorConfig
from megatron_kaiyuan.config.optimizer import OptimizerConfig
from megatron_kaiyuan.config.parallel import ParallelConfig
from megatron_kaiyuan.config.samples import SamplesConfig
from megatron_kaiyuan.config.section import Section
from megatron_kaiyuan.config.tasks import TasksConfig
from megatron_kaiyuan.config.train import TrainConfig
from megatron_kaiyuan.config.validation import ValidationConfig


class RunConfig(Section):
    """A whole training run. `run_dir` holds everything it writes."""

    run_dir: Annotated[Path, Field(description="the folder that the run writes; the same one resumes it")]
    platform: Annotated[
        Literal["auto", "cpu", "cuda", "npu"], Field(description="what trains; auto: the devices that are found")
    ] = "auto"
    mindspeed: Annotated[
        bool, Field(description="on platform npu: load MindSpeed's adaptor over Megatron Core, see docs/npu.md")
    ] = False
    init_from: Annotated[
        Path | None,
        Field(description="weights of a new run: a checkpoint's folder, an exported one, or a Qwen3 folder"),
    ] = None
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig
    train: TrainConfig
    backend: BackendConfig = BackendConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    monitor: MonitorConfig = MonitorConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    tasks: TasksConfig = TasksConfig()

    @model_validator(mode="after")
    def _check_across_sections(self) -> RunConfig:
        model, parallel, train = self.model, self.parallel, self.train
        tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        if why := unequal_parts(model, parallel):
            raise ValueError(why)
        virtual = parallel.virtual_pipeline_model_parallel_size
        if model.num_layers % (pipeline * virtual):
            raise ValueError(
                f"model.num_layers {model.num_layers} cannot be cut into parallel.pipeline_model_parallel_size "
                f"{pipeline} x virtual_pipeline_model_parallel_size {virtual} equal parts"
            )
        if parallel.sequence_parallel and train.seq_length % tensor:
            raise ValueError(
                f"train.seq_length {train.seq_length} cannot be cut into "
                f"parallel.tensor_model_parallel_size {tensor} equal parts, as sequence_parallel needs"
            )
        if train.seq_length > model.max_position_embeddings:
            raise ValueError(
                f"train.seq_length {train.seq_length} is above "
                f"model.max_position_embeddings {model.max_position_embeddings}"
            )
        if self.optimizer.qk_clip_tau is not None and model.qk_layernorm:
            raise ValueError(
                "optimizer.qk_clip_tau changes nothing with model.qk_layernorm, whose norms take away the scale of "
                "query and key weights; set model.qk_layernorm=false, or leave qk_clip_tau out"
            )
        for field in ("lr_mult", "wd_mult"):
            if "embedding_norm" in getattr(self.optimizer, field) and not model.embedding_norm:
                raise ValueError(
                    f"optimizer.{field}.embedding_norm is of no weight; set model.embedding_norm, or leave it out"
                )
        hang, minutes = self.faults.hang_timeout_seconds, parallel.timeout_minutes
        if hang is not None and minutes is not None and hang >= 60 * minutes:
            raise ValueError(
                f"faults.hang_timeout_seconds {hang:g} is not below parallel.timeout_minutes {minutes:g} "
                f"({60 * minutes:g} seconds), when collectives fail without naming a rank"
            )
        if train.global_batch_size % train.micro_batch_size:
            raise ValueError(
                f"train.global_batch_size {train.global_batch_size} is not a multiple of "
                f"train.micro_batch_size {train.micro_batch_size}"
            )
        return self


def unequal_parts(model: ModelConfig, parallel: ParallelConfig) -> str | None:
    """Why a network cannot be cut over tensor and pipeline ranks; None: it can."""
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "padded_vocab_size"):
        if getattr(model, name) % tensor:
            return (
                f"model.{name} {getattr(model, name)} cannot be cut into "
                f"parallel.tensor_model_parallel_size {tensor} equal parts"
            )
    if model.num_layers % pipeline:
        return (
            f"model.num_layers {model.num_layers} cannot be cut into "
            f"parallel.pipeline_model_parallel_size {pipeline} equal parts"
        )
    return None
