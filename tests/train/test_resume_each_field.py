"""Each field of the schema, changed at a resume: the next steps are others, are the same, or the start refuses it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.config.compare import AtResume, at_resume
from megatron_kaiyuan.config.samples import SamplesConfig
from megatron_kaiyuan.config.tasks import TasksConfig
from megatron_kaiyuan.config.validation import ValidationConfig
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.recipe_fields import fields_of
from tests.helpers.training.small_run import TOKENS_PER_STEP, fit_here, losses

if TYPE_CHECKING:
    from megatron_kaiyuan.train.session import Session

SAVED, STEPS = 10, 12
BASE = [
    "train.precision=fp16",
    "optimizer.initial_loss_scale=1024",
    "faults.spike_window=8",
    "data.phases.0.final_lr=1e-3",
    "data.phases.0.decay_fraction=1.0",
    "monitor.overflow_capsules=0",
    "monitor.activations_every_steps=0",
]

REFUSED = {
    "model.num_layers": "4",
    "model.hidden_size": "128",
    "model.ffn_hidden_size": "64",
    "model.num_attention_heads": "8",
    "model.num_query_groups": "1",
    "model.kv_channels": "32",
    "model.vocab_size": "512",
    "model.rotary_base": "10000",
    "model.layernorm_epsilon": "1e-5",
    "model.qk_layernorm": "false",
    "model.sandwich_norm": "false",
    "model.embedding_norm": "true",
    "model.fp32_residual": "true",
    "model.fp32_head": "true",
    "model.logits_soft_cap": "null",
    "train.precision": "bf16",
    "model.init_method_std": "0.01",
    "model.embedding_init_method_std": "0.5",
    "model.post_norm_initial_gain": "0.5",
    "train.seed": "7",
    "optimizer.initial_loss_scale": "2048",
}
# They make another of the next two steps.
TAKEN = {
    "data.phases.peak_lr": "data.phases.0.peak_lr=4e-3",
    "data.phases.final_lr": "data.phases.0.final_lr=2e-3",
    "data.phases.decay_fraction": "data.phases.0.decay_fraction=0.9",
    "data.phases.decay_shape": "data.phases.0.decay_shape=linear",
    "data.reset_attention_mask": "data.reset_attention_mask=true",
    "data.eod_mask_loss": "data.eod_mask_loss=true",
    "train.seq_length": "train.seq_length=32",
    "train.global_batch_size": "train.global_batch_size=4",
    "train.train_tokens": f"train.train_tokens={11 * TOKENS_PER_STEP}",
    "train.z_loss": "train.z_loss=0.1",
    "optimizer.adam_beta1": "optimizer.adam_beta1=0.5",
    "optimizer.adam_beta2": "optimizer.adam_beta2=0.5",
    "optimizer.adam_eps": "optimizer.adam_eps=1e-2",
    "optimizer.weight_decay": "optimizer.weight_decay=0.5",
    "optimizer.wd_mult": "optimizer.wd_mult={embedding: 0, norms: 2}",
    "optimizer.lr_mult": "optimizer.lr_mult={qkv: 0.5}",
    "optimizer.decoupled_lr": "optimizer.decoupled_lr=1e-3",
    "optimizer.clip_grad": "optimizer.clip_grad=0.01",
    "optimizer.warmup_tokens": f"optimizer.warmup_tokens={15 * TOKENS_PER_STEP}",
    "optimizer.schedule_tokens": f"optimizer.schedule_tokens={14 * TOKENS_PER_STEP}",
    # Fewer than the good steps so far.
    "optimizer.loss_scale_window": "optimizer.loss_scale_window=3",
}
# They change the answer to an overflow or a bad step: a session that has been resumed is asked for it.
ASKED: dict[str, tuple[str, Callable[[Session], Any]]] = {
    "optimizer.min_loss_scale": ("256", lambda session: lowest_scale(session)),
    "optimizer.hysteresis": ("5", lambda session: scaler(session)._hysteresis_tracker),
    "faults.on_bad_step": ("stop", lambda session: judged(session, math.nan)),
    "faults.spike_zscore": ("null", lambda session: judged(session, 100.0)),
    "faults.spike_window": ("9", lambda session: judged(session, 100.0)),
    "faults.max_skips_in_a_row": ("1", lambda session: [judged(session, math.nan) for _ in range(2)]),
    "faults.max_rollbacks": ("1", lambda session: rollbacks(session)),
    "faults.rollback_batches": ("1", lambda session: left_out(session)),
}
# Not a bit of the next steps is another.
SAME_BITS = {
    "data.phases.path": "data.phases.0.path=PHASE",
    "model.preset": "model.preset=null",
    "model.max_position_embeddings": "model.max_position_embeddings=4096",
    "parallel.timeout_minutes": "parallel.timeout_minutes=30",
    "checkpoint.save_every_steps": "checkpoint.save_every_steps=1",
    "checkpoint.save_every_minutes": "checkpoint.save_every_minutes=1",
    "checkpoint.asynchronous": "checkpoint.asynchronous=false",
    "checkpoint.keep_last": "checkpoint.keep_last=3",
    "checkpoint.keep_every_steps": "checkpoint.keep_every_steps=2",
    "checkpoint.keep_every_tokens": "checkpoint.keep_every_tokens=4096",
    "checkpoint.preempt_deadline_seconds": "checkpoint.preempt_deadline_seconds=7",
    "checkpoint.strict": "checkpoint.strict=true",
    "faults.hang_timeout_seconds": "faults.hang_timeout_seconds=100",
    "monitor.log_every_steps": "monitor.log_every_steps=2",
    "monitor.peak_tflops": "monitor.peak_tflops=1",
    "monitor.profile_steps": "monitor.profile_steps=1",
    "monitor.activations_every_steps": "monitor.activations_every_steps=1",
    "monitor.headroom_warning_bits": "monitor.headroom_warning_bits=5",
    "monitor.overflow_capsules": "monitor.overflow_capsules=1",
    "monitor.overflow_capsule_scale": "monitor.overflow_capsule_scale=1",
    "monitor.notify_command": "monitor.notify_command=cat",
    "monitor.notify_events": "monitor.notify_events=[end]",
    "monitor.notify_timeout_seconds": "monitor.notify_timeout_seconds=3",
    "monitor.tensorboard": "monitor.tensorboard=true",
    "monitor.wandb_project": "monitor.wandb_project=other",
    "monitor.swanlab_project": "monitor.swanlab_project=other",
}
# The same numbers up to rounding.
SAME_NUMBERS = {
    "train.micro_batch_size": "train.micro_batch_size=4",
    "parallel.use_distributed_optimizer": "parallel.use_distributed_optimizer=false",
    "parallel.overlap_grad_reduce": "parallel.overlap_grad_reduce=true",
    "parallel.recompute_granularity": "parallel.recompute_granularity=selective",
    "parallel.recompute_modules": "parallel.recompute_modules=[mlp]",
    **{f"backend.{name}": f"backend.{name}=torch" for name in ("norm", "swiglu", "rope", "loss", "attention")},
    **{f"backend.{name}": f"backend.{name}=torch" for name in ("document_attention", "weight_gradient", "passes")},
}
# Tests of their own, here or where there are several ranks, another device or an account.
ELSEWHERE = {
    **dict.fromkeys(("ema.decay", "ema.every_steps", "ema.device"), "tests/train/test_ema.py"),
    "optimizer.qk_clip_tau": "test_qk_clip",
    "data.reset_position_ids": "test_position_ids_of_documents",
    "parallel.tensor_model_parallel_size": "tests/train/test_reshard.py",
    "parallel.pipeline_model_parallel_size": "tests/train/test_reshard.py",
    "parallel.virtual_pipeline_model_parallel_size": "tests/train/test_reshard.py",
    "monitor.prometheus_file": "tests/monitor/test_prometheus.py",
    "parallel.sequence_parallel": "tests/train/test_parallel.py",
    "parallel.overlap_param_gather": "tests/train/test_parallel.py",
    "parallel.context_parallel_size": "only 1 is accepted",
    **{f"validation.{name}": "tests/train/hooks/test_validation.py" for name in ValidationConfig.model_fields},
    **{f"tasks.{name}": "tests/train/hooks/test_tasks_in_training.py" for name in TasksConfig.model_fields},
    **{f"samples.{name}": "tests/train/hooks/test_samples.py" for name in SamplesConfig.model_fields},
    "platform": "tests/train/test_cuda.py",
    "mindspeed": "tests/platform/test_npu.py",
    "monitor.wandb": "tests/monitor",
    "monitor.swanlab": "tests/monitor",
    "init_from": "tests/train/test_init_from.py",
    "run_dir": "every resume of this file",
}


def test_each_field_has_one_proof_of_its_class() -> None:
    tables: list[Iterable[str]] = [REFUSED, TAKEN, ASKED, SAME_BITS, SAME_NUMBERS, ELSEWHERE]
    assert sorted(name for table in tables for name in table) == sorted(fields_of(RunConfig))
    assert {at_resume(name) for name in REFUSED} == {AtResume.ANOTHER_RUN, AtResume.FIRST_START}
    assert {at_resume(name) for name in [*TAKEN, *ASKED]} == {AtResume.TAKEN}
    assert {at_resume(name) for name in [*SAME_BITS, *SAME_NUMBERS]} == {AtResume.NO_EFFECT}


@pytest.fixture(scope="module")
def saved(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("fields") / "saved"
    fit_here(recipe, f"run_dir={run_dir}", f"train.train_tokens={SAVED * TOKENS_PER_STEP}", *BASE)
    return run_dir


@pytest.fixture(scope="module")
def unchanged(recipe: Path, saved: Path) -> Session:
    return resumed(recipe, saved, saved.parent / "unchanged")


def resumed(
    recipe: Path, saved: Path, run_dir: Path, *changes: str, look: Callable[[Session], Any] | None = None
) -> Any:
    """The session after two more steps, or what a look at it before them gives."""
    shutil.copytree(saved, run_dir)
    found: list[Any] = []

    def prepare(session: Session) -> None:
        assert session.resumed and session.state.progress.step == SAVED
        if look is not None:
            found.append(look(session))
            session.end = 0

    tokens = f"train.train_tokens={STEPS * TOKENS_PER_STEP}"
    session = fit_here(recipe, f"run_dir={run_dir}", *BASE, tokens, *changes, prepare=prepare)
    return found[0] if look else session


def outcome(session: Session) -> list[torch.Tensor]:
    state = session.state
    progress = torch.tensor([state.progress.step, state.progress.tokens, float(scaler(session).scale)])
    return [progress, *(parameter.detach().float() for parameter in state.network.parameters())]


def is_same(one: Session, other: Session) -> bool:
    return all(torch.equal(a, b) for a, b in zip(outcome(one), outcome(other), strict=True))


def scaler(session: Session) -> Any:
    from megatron_kaiyuan.optim.scaler import loss_scaler

    return loss_scaler(session.state.optimizer)


def lowest_scale(session: Session) -> float:
    for _ in range(20):
        scaler(session).update(True)
    return float(scaler(session).scale)


def judged(session: Session, loss: float) -> str | None:
    from megatron_kaiyuan.train.bad_steps import StepFigures

    fault = session.bad_steps.judge(StepFigures(loss, 1.0, 1024.0, False, 0))
    return fault.action if fault else None


def rollbacks(session: Session) -> int:
    """How many are allowed."""
    for number in range(9):
        try:
            session.bad_steps.count_rollback(SAVED)
        except UserError:
            return number
    raise AssertionError("there is a bound")


def left_out(session: Session) -> list[list[int]]:
    from megatron_kaiyuan.train.bad_steps import Fault
    from megatron_kaiyuan.train.rollback import went_back
    from megatron_kaiyuan.train.step import StepResult
    from megatron_kaiyuan.train.votes import Votes

    session.state.progress.tokens += 3 * TOKENS_PER_STEP
    session.hooks = []
    start = session.state.progress.tokens
    batch = session.state.progress.step + 1, (start, start + TOKENS_PER_STEP)
    went_back(session, StepResult(*batch, math.nan, math.nan, True, 1024.0, Fault("a test", "rollback"), Votes(), 0.1))
    return session.state.progress.left_out


@pytest.mark.parametrize("field", REFUSED)
def test_refused(field: str, recipe: Path, saved: Path, unchanged: Session) -> None:
    from megatron_kaiyuan.train.resume import _accept

    config = load_run(recipe, [*BASE, f"{field}={REFUSED[field]}"]).model_dump(mode="json")
    folder = saved / "checkpoints" / f"step_{SAVED}"
    with pytest.raises(UserError, match=rf"cannot be resumed: {field} was .*choose another run_dir"):
        _accept(folder, {**unchanged.identity, "config": config})


@pytest.mark.parametrize("field", TAKEN)
def test_taken(field: str, recipe: Path, saved: Path, unchanged: Session, tmp_path: Path) -> None:
    assert not is_same(resumed(recipe, saved, tmp_path / "run", TAKEN[field]), unchanged)


@pytest.mark.parametrize("field", ASKED)
def test_taken_when_a_step_is_bad(field: str, recipe: Path, saved: Path, tmp_path: Path) -> None:
    value, look = ASKED[field]
    now = resumed(recipe, saved, tmp_path / "now", f"{field}={value}", look=look)
    assert now != resumed(recipe, saved, tmp_path / "was", look=look)


def test_adam_takes_the_step_that_its_new_options_make(recipe: Path, saved: Path, tmp_path: Path) -> None:
    """One step by hand, from the saved moments: arXiv 1711.05101 with the new betas and eps."""
    beta1, beta2, eps = 0.5, 0.6, 1e-2
    found: dict[str, Any] = {}

    def before(optimizer: Any, *_: Any) -> None:
        group = next(group for group in optimizer.param_groups if group["params"])
        main = group["params"][0]
        state, number = optimizer.state[main], group["step"] + 1
        first = beta1 * state["exp_avg"].double() + (1 - beta1) * main.grad.double()
        second = beta2 * state["exp_avg_sq"].double() + (1 - beta2) * main.grad.double() ** 2
        moved = first / (1 - beta1**number) / ((second / (1 - beta2**number)).sqrt() + eps)
        found["right"] = (1 - group["lr"] * group["weight_decay"]) * main.detach().double() - group["lr"] * moved
        found["main"] = main

    def prepare(session: Session) -> None:
        for part in session.state.optimizer.chained_optimizers:
            part.optimizer.register_step_pre_hook(before)

    shutil.copytree(saved, tmp_path / "run")
    options = [f"optimizer.adam_beta1={beta1}", f"optimizer.adam_beta2={beta2}", f"optimizer.adam_eps={eps}"]
    tokens = f"train.train_tokens={(SAVED + 1) * TOKENS_PER_STEP}"
    fit_here(recipe, f"run_dir={tmp_path / 'run'}", *BASE, tokens, *options, prepare=prepare)
    torch.testing.assert_close(found["main"].detach().double(), found["right"], rtol=1e-5, atol=1e-7)


def test_a_scale_below_a_raised_minimum_is_raised_at_once(recipe: Path, saved: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.optim.scaler import adapt_scaler

    def look(session: Session) -> float:
        scaler(session)._scale.fill_(2.0)
        adapt_scaler(session.state.optimizer, session.run.optimizer.hysteresis)
        return float(scaler(session).scale)

    assert resumed(recipe, saved, tmp_path / "run", "optimizer.min_loss_scale=64", look=look) == 64


def test_qk_clip(recipe: Path, tmp_path: Path) -> None:
    """It needs a network without query and key norms."""
    network = "model.qk_layernorm=false"
    fit_here(recipe, f"run_dir={tmp_path / 'saved'}", f"train.train_tokens={SAVED * TOKENS_PER_STEP}", *BASE, network)
    unchanged = resumed(recipe, tmp_path / "saved", tmp_path / "unchanged", network)
    changed = resumed(recipe, tmp_path / "saved", tmp_path / "run", network, "optimizer.qk_clip_tau=0.01")
    assert not is_same(changed, unchanged)


def test_not_a_bit_is_another(recipe: Path, saved: Path, unchanged: Session, tmp_path: Path) -> None:
    (tmp_path / "phase").symlink_to(recipe.parent / "phases" / "first")
    model = load_run(recipe).model.model_dump(mode="json")
    changes = [f"model.{name}={json.dumps(value)}" for name, value in model.items()]
    changes += [change.replace("PHASE", str(tmp_path / "phase")) for change in SAME_BITS.values()]
    assert is_same(resumed(recipe, saved, tmp_path / "run", *changes), unchanged)


def test_the_same_numbers(recipe: Path, saved: Path, unchanged: Session, tmp_path: Path) -> None:
    changed = resumed(recipe, saved, tmp_path / "run", *SAME_NUMBERS.values())
    assert losses(tmp_path / "run")[-2:] == pytest.approx(losses(unchanged.run.run_dir)[-2:], rel=1e-4)
    assert torch.equal(outcome(changed)[0], outcome(unchanged)[0])


def test_position_ids_of_documents(recipe: Path, saved: Path, tmp_path: Path) -> None:
    """Relative to their document by the mask alone, see `DataConfig`."""
    apart = resumed(recipe, saved, tmp_path / "apart", "data.reset_attention_mask=true")
    both = ["data.reset_attention_mask=true", "data.reset_position_ids=true"]
    assert is_same(resumed(recipe, saved, tmp_path / "both", *both), apart)
