"""From a recipe to a session that is ready to train: data, network, optimizer, checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.module import Float16Module

from megatron_kaiyuan.backend.choose import choose
from megatron_kaiyuan.checkpoint.initial import initialise, reload_main_weights
from megatron_kaiyuan.cluster import Rank
from megatron_kaiyuan.cluster.groups import agree_on_error, process_groups
from megatron_kaiyuan.cluster.last_words import LastWords, set_recorder_file
from megatron_kaiyuan.cluster.limits import time_limits
from megatron_kaiyuan.cluster.watchdog import Watchdog, watched
from megatron_kaiyuan.config import RunConfig, check_world_size
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.data.tokenizer_identity import Tokenizer
from megatron_kaiyuan.model.build import build_network, transformer_config
from megatron_kaiyuan.monitor.notify import report_hang
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.optim.build import build_optimizer
from megatron_kaiyuan.optim.ema import WeightEma
from megatron_kaiyuan.optim.schedule import Schedule
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.train.bad_steps import BadSteps
from megatron_kaiyuan.train.cuda_graphs import GraphedPasses
from megatron_kaiyuan.train.facts import start_facts
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.left_out import LeftOut
from megatron_kaiyuan.train.hooks.only_job import OnlyJob
from megatron_kaiyuan.train.hooks.order import hooks_in_order
from megatron_kaiyuan.train.hooks.run_sinks import RunSinks
from megatron_kaiyuan.train.hooks.utilization import utilization
from megatron_kaiyuan.train.implementations import implementations
from megatron_kaiyuan.train.loop import fit
from megatron_kaiyuan.train.own_time import OwnTime
from megatron_kaiyuan.train.parts import PartTimers
from megatron_kaiyuan.train.resume import Resumed, resume, run_identity
from megatron_kaiyuan.train.rounding import rounding_warning
from megatron_kaiyuan.train.run_folder import require_run_folder
from megatron_kaiyuan.train.run_length import count_steps, last_position, make_schedule, warnings
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.start_block import start_block
from megatron_kaiyuan.train.startup import Startup
from megatron_kaiyuan.train.state import RunProgress, TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """How training ended.

    Attributes:
        summary: one line.
        finished: it has come to its end.
        signal: number of the signal that stopped it before; 0: none did.
    """

    summary: str
    finished: bool
    signal: int


def train(run: RunConfig, who: Rank, platform: Platform, startup: Startup, more_hooks: Sequence[Hook] = ()) -> Ending:
    """Train a recipe to its end, or until a signal; resumes by itself when the run has a checkpoint. Collective.

    Args:
        startup: of this process; its imports are done.
        more_hooks: of the caller, called after those that every run has.

    Returns:
        When every rank is done with all that it writes.

    Raises:
        RankMissing: a rank did not come.
        UserError: something that the user can mend, before anything was lost.
    """
    check_world_size(run, who.world_size)
    platform.require_precision(run.train.precision)
    limits = time_limits(platform, run.parallel, run.faults)
    set_recorder_file(run.run_dir)
    report = partial(report_hang, run.run_dir, run.monitor)
    last_words = LastWords(run.run_dir, who.rank, platform.flight_recorder, report)
    with process_groups(who, platform, run.parallel, start_facts(run, platform.fused), limits):
        startup.ended("groups")
        with watched(Watchdog(who, limits.hang, limits.collective, last_words)) as watchdog:
            session = start(run, platform, startup, watchdog, more_hooks)
            fit(session)
        progress = session.state.progress
        ending = "finished" if session.finished else "stopped; the same command resumes it"
        summary = f"train: step {progress.step}/{session.total_steps}, {progress.tokens:,} tokens, {ending}"
    return Ending(summary, session.finished, session.stopped_by)


def start(
    run: RunConfig,
    platform: Platform,
    startup: Startup,
    watchdog: Watchdog | None = None,
    more_hooks: Sequence[Hook] = (),
) -> Session:
    """Open the data, build the network and load the newest whole checkpoint. Collective."""
    stream, schedule = _open_data(run, platform)
    startup.ended("data")
    state = build_state(run, platform)
    startup.ended("model")
    bad_steps = BadSteps(run.faults, run.optimizer.min_loss_scale)
    state.monitors["bad_steps"] = bad_steps
    # Only now: a start that fails on its input leaves no run folder.
    agree_on_error(lambda: require_run_folder(run.run_dir))
    only_job = OnlyJob(run.run_dir, time_limits(platform, run.parallel, run.faults))
    identity = run_identity(run, stream)
    resumed = resume(run, state, identity, run.checkpoint.strict)
    notes = _initialise(run, state, resumed, stream.tokenizer)
    left_out = LeftOut(run.run_dir, resumed)
    left_out.recall(state.progress, bad_steps)
    end = last_position(run, stream, state.progress.tokens)
    total_steps = state.progress.step + (end - state.progress.tokens) // run.train.tokens_per_step
    run_sinks = RunSinks(run, total_steps)
    sinks = run_sinks.sinks
    used = utilization(run, platform, torch.distributed.get_world_size())
    for line in start_block(
        run, stream.tokens, total_steps, torch.distributed.get_world_size(), platform.device_name()
    ):
        log.info(line)
    _tell(run, sinks, resumed, notes)
    _record_start(run, state, sinks, "start" if resumed.step is None else "resume", total_steps)
    if ahead := left_out.ahead(state.progress.tokens):
        sinks.event("left_out", step=state.progress.step, tokens=[entry["tokens"] for entry in ahead])
    sinks.event("implementations", table=implementations(state, run))
    sinks.event("utilization", **used.facts())
    return Session(
        run=run,
        state=state,
        stream=stream,
        schedule=schedule,
        end=end,
        identity=identity,
        resumed=resumed.step is not None,
        hooks=hooks_in_order(run, platform, startup, run_sinks, used, left_out, only_job, watchdog, more_hooks),
        bad_steps=bad_steps,
        left_out=left_out,
    )


def _open_data(run: RunConfig, platform: Platform) -> tuple[TokenStream, Schedule]:
    """Check the data and the plan before anything is built, and print what looks odd. Collective."""
    # Every rank maps the data, which takes no time; reading it through is shared among them.
    part = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folders = [phase.path for phase in run.data.phases]
    stream = agree_on_error(lambda: TokenStream(folders, run.model.vocab_size, check=part))
    agree_on_error(lambda: count_steps(run, stream))
    schedule = agree_on_error(lambda: make_schedule(run, stream))
    odd = agree_on_error(lambda: warnings(run, stream, schedule))
    if torch.distributed.get_rank() == 0:
        for warning in filter(None, (*odd, rounding_warning(run, platform))):
            log.warning(warning)
    return stream, schedule


def _record_start(run: RunConfig, state: TrainState, sinks: Sinks, name: str, total_steps: int) -> None:
    sinks.event(
        name,
        step=state.progress.step,
        tokens=state.progress.tokens,
        total_steps=total_steps,
        world_size=torch.distributed.get_world_size(),
        platform=state.platform.name,
        parameters=count_parameters(run.model),
    )


def build_state(run: RunConfig, platform: Platform) -> TrainState:
    """Fresh weights on the device, wrapped for data parallelism, with their optimizer. Collective."""
    stage = parallel_state.get_pipeline_model_parallel_rank()
    tensor_parallel.model_parallel_cuda_manual_seed(run.train.seed + 100 * stage)
    backend = choose(run.backend, platform, run)
    config = transformer_config(run.model, run.parallel, run.train.precision, backend)
    network = build_network(run.model, run.parallel, config, run.train.seed, run.train.z_loss, backend)
    network.to(platform.device)
    data_parallel = DistributedDataParallelConfig(
        use_distributed_optimizer=run.parallel.use_distributed_optimizer,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=run.parallel.overlap_grad_reduce,
        overlap_param_gather=run.parallel.overlap_param_gather,
    )
    with_graphs = backend.choices["passes"].implementation == "cuda_graphs"
    with platform.beside() if with_graphs else nullcontext():
        models = [
            DistributedDataParallel(
                config,
                data_parallel,
                chunk if run.train.precision == "fp32" else Float16Module(config, chunk),
                # As Megatron-LM does: gradients of the chunks after the first are ready while others compute.
                disable_bucketing=number > 0,
            )
            for number, chunk in enumerate(network.chunks)
        ]
    optimizer = build_optimizer(run, models)
    own_time = OwnTime(platform)
    config.finalize_model_grads_func = own_time.ends_at(finalize_model_grads)
    config.grad_scale_func = optimizer.scale_loss
    config.timers = PartTimers()
    if run.parallel.overlap_grad_reduce:
        no_sync = [model.no_sync for model in models]
        config.no_sync_func = no_sync[0] if len(models) == 1 else no_sync
    graphs = GraphedPasses(models[0], optimizer, platform) if with_graphs else None
    ema = WeightEma(optimizer, run.ema) if run.ema.decay is not None else None
    return TrainState(network, models, optimizer, platform, RunProgress(), own_time, graphs, ema)


def _initialise(run: RunConfig, state: TrainState, resumed: Resumed, tokenizer: Tokenizer | None) -> list[str]:
    """Take the weights that a new run starts from, if it names any; what is to be said about it."""
    if run.init_from is None:
        return []
    if resumed.step is not None:
        return [f"not used: the run has a checkpoint of its own, step {resumed.step}"]
    notes = initialise(state.network, run.model, run.init_from, tokenizer)
    reload_main_weights(state.optimizer)
    return notes


def _tell(run: RunConfig, sinks: Sinks, resumed: Resumed, notes: list[str]) -> None:
    """What was found and what changed, in the run's own record."""
    if run.init_from is not None:
        if torch.distributed.get_rank() == 0:
            for note in notes:
                log.warning(f"init_from {run.init_from}: {note}")
        sinks.event("init_from", step=resumed.step or 0, path=str(run.init_from), notes=notes)
    for problem in resumed.problems:
        sinks.event("checkpoint_problem", message=problem)
    if resumed.changes:
        changes = {change.field: {"was": change.was, "now": change.now} for change in resumed.changes}
        sinks.event("config_change", step=resumed.step, changes=changes)
