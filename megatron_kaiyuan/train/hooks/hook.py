"""The form of a hook: what it may do, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_kaiyuan.train.votes import Votes

if TYPE_CHECKING:
    from megatron_kaiyuan.train.session import Session
    from megatron_kaiyuan.train.step import StepResult


class Hook:
    """Called on every rank, in the order of `Session.hooks`."""

    def start(self, session: Session) -> None:
        """Before the first step."""

    def vote(self, session: Session) -> Votes:
        """What this rank reports to the others with the coming step; `StepResult.votes` holds the sum."""
        return Votes()

    def before_step(self, session: Session) -> None:
        """Before each step; `session.state.progress` does not count it yet."""

    def before_update(self, session: Session) -> None:
        """Within a step, before weights and moments change; not in a step whose update is withheld."""

    def after_step(self, session: Session, result: StepResult) -> None:
        """After a step; `session.state.progress` already counts it."""

    def bad_step(self, session: Session, result: StepResult) -> None:
        """`result.fault` withheld the update; `session.state.progress` still stands before the batch."""

    def rolled_back(self, session: Session) -> None:
        """The state is that of an older step again."""

    def finish(self, session: Session) -> None:
        """After the last step, also when the run was asked to stop; not after an error."""

    def give_up(self, session: Session) -> None:
        """After an error that every rank has raised at the same place: the last chance to end what was begun."""
