"""Every field of a run, with its unit, default and limits. Names are Megatron's where it has one."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.numbers import is_counted, read_count
from megatron_kaiyuan.paths import user_paths

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of every section: unknown fields are refused, and nothing changes after loading.

    Every field reads whole numbers as people write them (`numbers.py`), below 2^63, and `~` in paths (`paths.py`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _read_number(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        annotation = cls.model_fields[name].annotation
        kinds = {*(get_args(annotation) or (annotation,))} - {NoneType}
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError("must stay below 2^63")
        return read_count(value, units=is_counted(name)) if isinstance(value, str) and kinds == {int} else value

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        try:
            return user_paths(value)
        except UserError as error:
            raise ValueError(str(error)) from error


class ModelConfig(Section):
    """The shape of the network and the three additions that keep it inside FP16.

    Fields that a recipe leaves out come from the preset it names.
    """

    preset: Annotated[
        Literal[tuple(PRESETS)] | None,  # type: ignore[valid-type]
        Field(description="a named shape, which the other fields change"),
    ] = None
    num_layers: Annotated[int, Field(gt=0, description="layers, each attention and MLP")]
    hidden_size: Annotated[int, Field(gt=0, description="width of the residual stream")]
    ffn_hidden_size: Annotated[int, Field(gt=0, description="width inside the MLP (SwiGLU: of gate and of up)")]
    num_attention_heads: Annotated[int, Field(gt=0, description="query heads of a layer")]
    num_query_groups: Annotated[int, Field(gt=0, description="key and value heads, each shared by as many queries")]
    kv_channels: Annotated[int, Field(gt=0, multiple_of=2, description="size of one attention head")]
    vocab_size: Annotated[int, Field(gt=0, description="ids in the tokenizer; padded up to a multiple of 128")]
    max_position_embeddings: Annotated[int, Field(gt=0, description="the longest sequence, in tokens")]
    rotary_base: Annotated[int, Field(gt=0, description="base of the rotary embedding's wavelengths")] = 1_000_000
    layernorm_epsilon: Annotated[float, Field(gt=0, description="added to the mean square in each RMSNorm")] = 1e-6
    init_method_std: Annotated[float, Field(gt=0, description="standard deviation of fresh matrices")] = 0.02
    embedding_init_method_std: Annotated[float, Field(gt=0, description="of the fresh embedding")] = 1.0
    post_norm_initial_gain: Annotated[float, Field(gt=0, description="RMS that a fresh sub-layer adds")] = 0.1
    qk_layernorm: Annotated[bool, Field(description="RMSNorm of each head's queries and keys")] = True
    sandwich_norm: Annotated[bool, Field(description="x + norm_post(F(norm_pre(x))) round attention and MLP")] = True
    embedding_norm: Annotated[bool, Field(description="RMSNorm between the embedding and the first layer")] = False
    fp32_residual: Annotated[bool, Field(description="residual stream in FP32; sub-layers keep the precision")] = False
    fp32_head: Annotated[bool, Field(description="final norm and logits in FP32, from weights as they are")] = False
    logits_soft_cap: Annotated[
        float | None, Field(gt=0, description="c of c * tanh(logits / c), in FP32; null turns it off")
    ] = 30.0

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("preset"), str) and values["preset"] in PRESETS:
            return {**PRESETS[values["preset"]], **values}
        return values

    @model_validator(mode="after")
    def _check_shape(self) -> ModelConfig:
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_query_groups {self.num_query_groups}"
            )
        return self

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to 128, the same for any layout of ranks."""
        return -(-self.vocab_size // 128) * 128


class ParallelConfig(Section):
    """How the network is cut over ranks; what is left of the world is data parallel."""

    tensor_model_parallel_size: Annotated[int, Field(gt=0, description="ranks that share each matrix")] = 1
    pipeline_model_parallel_size: Annotated[int, Field(gt=0, description="ranks that share the layers, in turn")] = 1
    virtual_pipeline_model_parallel_size: Annotated[
        int, Field(gt=0, description="parts of the network on each pipeline rank, which take turns (interleaved 1F1B)")
    ] = 1
    context_parallel_size: Annotated[int, Field(gt=0, description="1 only, see docs/decisions.md")] = 1
    sequence_parallel: Annotated[
        bool, Field(description="cut what lies between the matrices along the sequence, over the tensor ranks")
    ] = False
    use_distributed_optimizer: Annotated[
        bool, Field(description="cut optimizer state over the data-parallel ranks")
    ] = True
    overlap_grad_reduce: Annotated[bool, Field(description="reduce gradients while the backward pass runs")] = False
    overlap_param_gather: Annotated[
        bool, Field(description="gather the updated weights while the next forward pass runs; with overlap_grad_reduce")
    ] = False
    recompute_granularity: Annotated[
        Literal["selective", "full"] | None,
        Field(description="computed again by the backward pass: parts of a layer, whole layers; null: nothing"),
    ] = None
    recompute_modules: Annotated[
        list[Literal["core_attn", "layernorm", "mlp"]] | None,
        Field(min_length=1, description="the parts, with selective; null: core_attn, the scores of attention"),
    ] = None
    timeout_minutes: Annotated[
        float | None,
        Field(
            gt=0,
            description="a collective, or a start with its first step, that takes longer ends the job; null: 10, and "
            "30 on devices that compile operators when first called (Ascend 910A)",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_context(self) -> ParallelConfig:
        if self.context_parallel_size > 1:
            raise ValueError(
                f"context_parallel_size {self.context_parallel_size}: Megatron Core 0.16 cuts sequences over ranks "
                "with Transformer Engine's attention only, which this network does not use; leave it at 1"
            )
        return self

    @model_validator(mode="after")
    def _check_gather(self) -> ParallelConfig:
        needed = ("use_distributed_optimizer", "overlap_grad_reduce")
        lacks = [name for name in needed if not getattr(self, name)]
        if self.overlap_param_gather and lacks:
            raise ValueError(f"overlap_param_gather needs {' and '.join(f'{name}: true' for name in lacks)}")
        return self

    @model_validator(mode="after")
    def _check_virtual(self) -> ParallelConfig:
        if self.virtual_pipeline_model_parallel_size > 1 and self.pipeline_model_parallel_size == 1:
            raise ValueError(
                f"virtual_pipeline_model_parallel_size {self.virtual_pipeline_model_parallel_size} needs "
                "pipeline_model_parallel_size above 1: one rank has nobody to take turns with"
            )
        return self

    @model_validator(mode="after")
    def _check_recompute(self) -> ParallelConfig:
        if self.recompute_modules is not None and self.recompute_granularity != "selective":
            raise ValueError("recompute_modules needs recompute_granularity: selective")
        if "layernorm" in (self.recompute_modules or []):
            raise ValueError(
                "recompute_modules: Megatron Core 0.16 can recompute layernorm with Transformer Engine only; use "
                "core_attn and mlp, or recompute_granularity: full"
            )
        return self

    @property
    def virtual_stages(self) -> int | None:
        """As megatron-core wants it: None where the network of a rank is in one part."""
        return None if self.virtual_pipeline_model_parallel_size == 1 else self.virtual_pipeline_model_parallel_size

    @property
    def recomputed(self) -> frozenset[str]:
        """What the backward pass computes again: `layer`, or parts of one."""
        if self.recompute_granularity == "selective":
            return frozenset(self.recompute_modules or ["core_attn"])
        return frozenset(["layer"] if self.recompute_granularity == "full" else [])

    @property
    def model_parallel_size(self) -> int:
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size


class PhaseConfig(Section):
    """One phase of the token stream and its learning rates."""

    path: Annotated[Path, Field(description="folder that kaiyuan-data curriculum wrote")]
    peak_lr: Annotated[float, Field(gt=0, description="learning rate after the warm-up, until the decay")]
    final_lr: Annotated[float | None, Field(gt=0, description="where the decay ends; null: no decay")] = None
    decay_fraction: Annotated[Fraction, Field(description="last part of the phase over which the LR decays")] = 0.2
    decay_shape: Annotated[
        Literal["one_minus_sqrt", "linear", "cosine"],
        Field(description="of the decay, t from 0 to 1: 1 - sqrt(t), 1 - t, or half a cosine"),
    ] = "one_minus_sqrt"

    @model_validator(mode="after")
    def _check_decay(self) -> PhaseConfig:
        if self.final_lr is not None and self.final_lr > self.peak_lr:
            raise ValueError(
                f"final_lr {self.final_lr:g} is above peak_lr {self.peak_lr:g}: the learning rate would rise where it "
                "is to decay; exchange them, or leave final_lr out"
            )
        return self


class DataConfig(Section):
    """Where the token stream comes from."""

    phases: Annotated[list[PhaseConfig], Field(min_length=1, description="trained on one after the other")]
    reset_position_ids: Annotated[bool, Field(description="position ids start again with each document")] = False
    reset_attention_mask: Annotated[bool, Field(description="attention stays inside each document")] = False
    eod_mask_loss: Annotated[
        bool, Field(description="no loss where the label is the first token of the next document")
    ] = False

    @model_validator(mode="after")
    def _check_resets(self) -> DataConfig:
        if self.reset_position_ids and not self.reset_attention_mask:
            raise ValueError(
                "reset_position_ids changes nothing alone, as rotary embeddings count from the start of the sample "
                "whatever the position ids; set reset_attention_mask, which makes positions relative to the document"
            )
        return self


class BackendConfig(Section):
    """What computes the operations between the matrix products: a library, or the first choice of the device."""

    norm: Annotated[
        Literal["auto", "torch", "compiled", "liger", "npu"],
        Field(description="RMSNorm; compiled: by torch.compile; liger: Liger's Triton kernels; npu: CANN's"),
    ] = "auto"
    swiglu: Annotated[
        Literal["auto", "torch", "compiled", "liger", "npu"], Field(description="silu(gate) * up of the MLP")
    ] = "auto"
    rope: Annotated[Literal["auto", "torch", "compiled"], Field(description="the rotary embedding")] = "auto"
    loss: Annotated[
        Literal["auto", "torch", "compiled"], Field(description="soft cap and cross-entropy, block by block")
    ] = "auto"
    attention: Annotated[
        Literal["auto", "torch", "cudnn", "flash", "efficient", "blocked"],
        Field(
            description="one of torch's own kernels, or torch's choice among them; blocked: plain operations on some "
            "queries at a time, for devices without such a kernel"
        ),
    ] = "auto"
    document_attention: Annotated[
        Literal["auto", "torch", "flex", "split", "blocked"],
        Field(
            description="with data.reset_attention_mask; torch: under a mask of all pairs; blocked: likewise, some "
            "queries at a time"
        ),
    ] = "auto"
    weight_gradient: Annotated[
        Literal["auto", "torch", "fused"],
        Field(description="half precision; fused: the product adds itself to the FP32 sum, torch: another kernel does"),
    ] = "auto"
    passes: Annotated[
        Literal["auto", "torch", "recorded"],
        Field(description="recorded: CUDA graphs of a micro-batch, where one rank has the whole network"),
    ] = "auto"


class TrainConfig(Section):
    """The step: batch, length, precision and how far to go."""

    seq_length: Annotated[int, Field(gt=0, description="tokens of a sample")]
    micro_batch_size: Annotated[int, Field(gt=0, description="samples of one pass on a data-parallel rank")]
    global_batch_size: Annotated[int, Field(gt=0, description="samples of a step, over all ranks")]
    train_tokens: Annotated[
        int | None,
        Field(ge=0, description="stop after these tokens, whatever the schedule; null: at the end of the phases"),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Field(description="of weights and activations; the optimizer's copy of the weights is FP32 in any case"),
    ] = "fp32"
    z_loss: Annotated[
        float,
        Field(ge=0, description="coefficient of (log Z)^2 in what is minimised; the reported loss has none"),
    ] = 0.0
    seed: Annotated[int, Field(ge=0, description="of fresh weights")] = 1234

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.seq_length


class OptimizerConfig(Section):
    """AdamW and the dynamic loss scaler (used with `precision: fp16` only)."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1, description="decay of the gradient's running mean")] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1, description="decay of the squared gradient's running mean")] = 0.95
    adam_eps: Annotated[float, Field(gt=0, description="added to the root of that mean")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="decoupled, of matrices; norms have none")] = 0.1
    clip_grad: Annotated[float, Field(ge=0, description="largest gradient norm; 0 turns clipping off")] = 1.0
    qk_clip_tau: Annotated[
        float | None,
        Field(gt=0, description="QK-clip: the attention logit beyond which a head is scaled back; null: none"),
    ] = None
    warmup_tokens: Annotated[int, Field(ge=0, description="over which the learning rate rises from 0 to its peak")] = 0
    schedule_tokens: Annotated[
        int | None,
        Field(
            gt=0,
            description="length of the learning rate's schedule: fewer tokens than the phases hold cut it short, and "
            "the rate stays where it ends; more make the last phase longer; null: what the phases hold",
        ),
    ] = None
    initial_loss_scale: Annotated[float, Field(gt=0, description="FP16: what the loss is multiplied by at first")] = (
        65536.0
    )
    min_loss_scale: Annotated[float, Field(gt=0, description="FP16: an overflow at this scale is a bad step")] = 1.0
    loss_scale_window: Annotated[int, Field(gt=0, description="good steps before the scale doubles")] = 1000
    hysteresis: Annotated[
        int, Field(gt=0, description="overflows before the scale halves, counted anew only when it has doubled")
    ] = 2

    @model_validator(mode="after")
    def _check_scales(self) -> OptimizerConfig:
        if self.min_loss_scale > self.initial_loss_scale:
            raise ValueError(
                f"min_loss_scale {self.min_loss_scale:g} is above initial_loss_scale {self.initial_loss_scale:g}"
            )
        return self


class CheckpointConfig(Section):
    """When checkpoints are written and which stay.

    A step is also saved on SIGTERM, SIGHUP and SIGUSR1, which end the run, and after `touch RUN_DIR/save_now`.
    """

    save_every_steps: Annotated[int, Field(gt=0, description="steps from one scheduled checkpoint to the next")] = 1000
    save_every_minutes: Annotated[float | None, Field(gt=0, description="by the clock of rank 0")] = None
    asynchronous: Annotated[bool, Field(description="write while training goes on")] = True
    keep_last: Annotated[int, Field(ge=2, description="step 0 is kept besides")] = 10
    keep_every_steps: Annotated[int | None, Field(gt=0, description="multiples of it stay for ever")] = None
    keep_every_tokens: Annotated[
        int | None, Field(gt=0, description="the first checkpoint at or behind each multiple stays for ever")
    ] = None
    preempt_deadline_seconds: Annotated[
        float, Field(gt=0, description="after SIGTERM, SIGHUP or SIGUSR1: time to finish the step and to save it")
    ] = 100.0
    strict: Annotated[bool, Field(description="a damaged checkpoint ends the run instead of an older one's use")] = (
        False
    )


class FaultsConfig(Section):
    """What happens when a step goes wrong, and when a rank does.

    A step is bad when loss or gradient are not finite, when FP16 gradients overflow at the smallest loss scale, and
    when the loss stands out from the window. Its update is never applied. `skip` goes on with the next batch;
    `rollback` goes back to the newest whole checkpoint and leaves out batches that end with the bad one; `stop` ends
    the run.
    """

    on_bad_step: Annotated[Literal["skip", "rollback", "stop"], Field(description="see above")] = "skip"
    spike_zscore: Annotated[
        float | None, Field(gt=0, description="robust standard deviations above the window's median; null: no check")
    ] = 12.0
    spike_window: Annotated[int, Field(ge=8, description="good steps of this phase that the loss is compared with")] = (
        128
    )
    max_skips_in_a_row: Annotated[int, Field(gt=0, description="with skip: one more ends the run")] = 10
    max_rollbacks: Annotated[int, Field(gt=0, description="to one checkpoint; one more ends the run")] = 3
    rollback_batches: Annotated[
        int, Field(gt=0, description="left out by a rollback, the bad one last; none from before the checkpoint")
    ] = 100
    hang_timeout_seconds: Annotated[
        float | None,
        Field(
            gt=0,
            description="no rank may take longer from one step or save to the next; null: 300, and 900 on devices that "
            "compile operators when first called, but at most half of parallel.timeout_minutes",
        ),
    ] = None


NotifyEvent = Literal["start", "save", "bad_step", "hang", "stop", "end"]


class MonitorConfig(Section):
    """What is recorded; `metrics.jsonl` always is."""

    log_every_steps: Annotated[int, Field(gt=0, description="steps from one line on the terminal to the next")] = 10
    peak_tflops: Annotated[
        float | None,
        Field(
            gt=0,
            description="that mfu divides by: of one device in the run's precision, dense, 1e12 FLOP/s; null: as "
            "platform/figures.py has it for the device that is found, and no mfu for others",
        ),
    ] = None
    profile_steps: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="how many steps of rank 0, behind the first 3 of each job, torch's profiler records, for "
            "RUN_DIR/profile; 0: none; they take longer",
        ),
    ] = 0
    activations_every_steps: Annotated[
        int, Field(ge=0, description="size of activations, gradients and updates by layer; 0: never")
    ] = 100
    headroom_warning_bits: Annotated[
        float, Field(ge=0, description="FP16: warn when an activation comes closer to 65,504; 3: above 8,188")
    ] = 3.0
    overflow_capsules: Annotated[
        int,
        Field(
            ge=0,
            description="a step that overflowed is run again to name the first tensor beyond the range, and for "
            "`kaiyuan replay` RUN_DIR/overflow keeps so many at most, the first ones; 0: no step is run again",
        ),
    ] = 3
    overflow_capsule_scale: Annotated[
        float,
        Field(
            ge=0,
            description="FP16: gradients that overflow at a larger loss scale are the scaler's daily work, named and "
            "not kept; an overflow in a forward pass, or at the smallest scale, always may be",
        ),
    ] = 1024.0
    notify_command: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="a shell's command that rank 0 has run for each event, which is JSON on its standard input and "
            "in KAIYUAN_EVENT, KAIYUAN_TEXT, KAIYUAN_STEP, KAIYUAN_RUN_DIR, KAIYUAN_HOST; never waited for; null: none",
        ),
    ] = None
    notify_events: Annotated[
        list[NotifyEvent], Field(description="the events that notify_command is run for; end: also of a job that died")
    ] = ["start", "save", "bad_step", "hang", "stop", "end"]
    notify_timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="after so long a notify_command is killed")
    ] = 10.0
    prometheus_file: Annotated[
        Path | None,
        Field(description="NAME.prom in the textfile folder of rank 0's node exporter, rewritten with each row"),
    ] = None
    tensorboard: Annotated[bool, Field(description="event files in RUN_DIR/tensorboard")] = False
    wandb: Annotated[bool, Field(description="Weights & Biases, offline without an account")] = False
    wandb_project: Annotated[str, Field(description="its project")] = "megatron-kaiyuan"
    swanlab: Annotated[bool, Field(description="SwanLab")] = False
    swanlab_project: Annotated[str, Field(description="its project")] = "megatron-kaiyuan"


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
        Path | None, Field(description="weights of a new run: a checkpoint's folder, or a Hugging Face Qwen3 folder")
    ] = None
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig
    train: TrainConfig
    backend: BackendConfig = BackendConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    monitor: MonitorConfig = MonitorConfig()

    @model_validator(mode="after")
    def _check_across_sections(self) -> RunConfig:
        model, parallel, train = self.model, self.parallel, self.train
        tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "padded_vocab_size"):
            if getattr(model, name) % tensor:
                raise ValueError(
                    f"model.{name} {getattr(model, name)} cannot be cut into "
                    f"parallel.tensor_model_parallel_size {tensor} equal parts"
                )
        if model.num_layers % pipeline:
            raise ValueError(
                f"model.num_layers {model.num_layers} cannot be cut into "
                f"parallel.pipeline_model_parallel_size {pipeline} equal parts"
            )
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
