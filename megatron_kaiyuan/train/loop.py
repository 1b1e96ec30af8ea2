"""The loop: a step, then everything that hangs on it, until the stream ends or somebody asks to stop."""

from __future__ import annotations

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.optim.build import set_step_options
from megatron_kaiyuan.train.parts import part
from megatron_kaiyuan.train.rollback import went_back
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import training_step
from megatron_kaiyuan.train.votes import either


def fit(session: Session) -> None:
    """Train to the end of the session. Collective: every rank calls it and takes the same steps."""
    try:
        _fit(session)
    except UserError as error:
        if error.every_rank:
            for hook in session.hooks:
                hook.give_up(session)
        raise


def _fit(session: Session) -> None:
    state, train = session.state, session.run.train
    for hook in session.hooks:
        hook.start(session)

    while not session.ended:
        state.progress.tokens = state.progress.next_batch(train.tokens_per_step)
        learning_rate = session.schedule.learning_rate(state.progress.tokens + train.tokens_per_step)
        set_step_options(state.optimizer, learning_rate, session.run.optimizer.weight_decay)

        for hook in session.hooks:
            with part("hooks", hook):
                hook.before_step(session)
        with part("hooks"):
            votes = either(hook.vote(session) for hook in session.hooks)
        judge, before_update = session.bad_steps.judge, session.before_update
        result = training_step(state, session.stream, session.run, votes, judge, before_update)
        session.stop_agreed = result.votes.stop > 0
        if result.fault is not None and went_back(session, result):
            continue

        state.progress.step = result.step
        state.progress.tokens = result.tokens[1]
        state.progress.skipped_steps += result.skipped
        state.progress.overflow_steps += result.overflow and result.fault is None
        for hook in session.hooks:
            with part("hooks", hook):
                hook.after_step(session, result)

    for hook in session.hooks:
        hook.finish(session)
