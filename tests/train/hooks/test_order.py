"""The one list of hooks: its order, that no other place adds to it, and that no hook leaves a callable in the state."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import megatron_kaiyuan
from megatron_kaiyuan.config import load_run
from tests.helpers.training.small_run import TOKENS_PER_STEP, fit_here

if TYPE_CHECKING:
    from megatron_kaiyuan.train.session import Session

ALL = [
    "monitor.profile_steps=1",
    "monitor.activations_every_steps=2",
    "monitor.overflow_capsules=1",
    "model.qk_layernorm=false",
    "optimizer.qk_clip_tau=1",
    "ema.decay=0.9",
]
SOURCE = Path(megatron_kaiyuan.__file__).parent


def callables(session: Session) -> dict[str, Any]:
    """Everything callable that the state and Megatron Core's configuration of the network hold."""
    from megatron.core.utils import get_model_config

    objects = {"state": session.state, "config": get_model_config(session.state.models[0])}
    fields = {f"{where}.{name}": value for where, of in objects.items() for name, value in vars(of).items()}
    return {name: value for name, value in fields.items() if callable(value)}


def test_the_order_and_the_state(recipe: Path, tmp_path: Path) -> None:
    before: dict[str, Any] = {}
    names: list[str] = []

    def look(session: Session) -> None:
        before.update(callables(session))
        names.extend(type(hook).__name__ for hook in session.hooks)

    tokens = f"train.train_tokens={6 * TOKENS_PER_STEP}"
    session = fit_here(recipe, f"run_dir={tmp_path}", tokens, *ALL, prepare=look)
    # Each before the next, for the reasons in hooks/order.py; without the watchdog's, and signals of this process.
    assert names == [
        *("Profiling", "LeftOut", "ReportEnvironment", "ReportBadSteps", "ReportLossScale", "QKClip", "KeepEma"),
        *("Monitoring", "Forensics", "Stragglers", "Validation", "Metrics", "Checkpoints", "RunSinks", "OnlyJob"),
        "ReportStartup",
    ]
    after = callables(session)
    assert after.keys() == before.keys() and "config.timers" in before and "config.grad_scale_func" in before
    # Methods are bound at each look, so they are compared by value.
    assert all(after[name] == before[name] for name in before)


def test_the_watchdog_is_first_and_the_callers_hooks_are_last(recipe: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan import platform

    device = platform.activate("cpu")
    from megatron_kaiyuan.train.hooks.hook import Hook
    from megatron_kaiyuan.train.hooks.order import hooks_in_order
    from megatron_kaiyuan.train.startup import Startup

    class Sinks(Hook):
        sinks = None

    mine = Hook()
    others: Any = [Sinks(), Hook(), Hook()]
    run: Any = load_run(recipe, [f"run_dir={tmp_path}"])
    nothing: Any = None
    watchdog: Any = object()
    sinks, left_out, only_job = others
    hooks = hooks_in_order(run, device, Startup(), sinks, nothing, left_out, only_job, watchdog, [mine])
    assert type(hooks[0]).__name__ == "Heartbeat" and hooks[-1] is mine
    assert all(hook in hooks for hook in others)


def test_no_other_place_adds_a_hook() -> None:
    changes = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                # hooks.append, hooks.insert, hooks.extend
                targets = [node.func.value]
            changes += [
                path.relative_to(SOURCE) for one in targets if isinstance(one, ast.Attribute) and one.attr == "hooks"
            ]
    # Which leaves checkpoints out.
    assert [str(path) for path in changes] == ["doctor/acceptance/largest_ranks.py"]
