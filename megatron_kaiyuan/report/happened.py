"""What happened in a run, in words: its events, and the texts that it wrote on the way."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_kaiyuan.config.compare import Change, at_resume
from megatron_kaiyuan.report.metrics import History
from megatron_kaiyuan.report.table import number

Event = dict[str, Any]

# Other parts of the page show these.
_ELSEWHERE = ("checkpoint", "loss_scale", "utilization", "implementations", "environment", "samples")
_FAULTS = ("bad_step", "rollback", "overflow", "headroom_warning", "checkpoint_problem")
# The end of year 9999.
_LAST_SECOND = 253_402_300_800
_LONGEST = 600
_CORPORA = 4


@dataclass(frozen=True)
class Happening:
    """A row of the table of events.

    Attributes:
        kind: "restart", "fault" or "".
    """

    name: str
    step: Any
    when: str
    words: str
    kind: str


def happenings(history: History) -> list[Happening]:
    """Events in the order in which they were written."""
    return [_happening(event) for event in history.events if event["event"] not in _ELSEWHERE]


def samples_of(history: History) -> list[Event]:
    """Step, tokens and texts (prompt, text) of each time, the newest first; what does not fit is left out."""
    found = []
    for event in reversed(history.events):
        rows = event.get("samples") if event["event"] == "samples" else None
        if isinstance(rows, list):
            texts = [(str(row.get("prompt", "")), str(row.get("text", ""))) for row in rows if isinstance(row, dict)]
            found.append({"step": _count(event.get("step")), "tokens": _count(event.get("tokens")), "texts": texts})
    return found


def time_in_words(seconds: Any) -> str:
    """A time of a run's files for people; nothing where it is none."""
    value = number(seconds)
    if not 0 <= value < _LAST_SECOND:
        return ""
    return f"{datetime.datetime.fromtimestamp(value, datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _happening(event: Event) -> Happening:
    name = event["event"]
    kind = "restart" if name == "resume" else "fault" if name in _FAULTS else ""
    words = _WORDS.get(name, _any)(event)
    words = words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."
    return Happening(name.replace("_", " "), event.get("step"), time_in_words(event.get("time")), words, kind)


def _start(event: Event) -> str:
    if event.get("world_size") is None:
        return ""
    return f"{_of(event, 'world_size', 'rank')} on {event.get('platform')}, to step {_count(event.get('total_steps'))}"


def _resume(event: Event) -> str:
    return "; ".join(filter(None, [f"continues from checkpoint step_{event.get('step')}", _start(event)]))


def _config_change(event: Event) -> str:
    changes = event.get("changes")
    if not isinstance(changes, dict):
        return _any(event)
    said = []
    for field, change in changes.items():
        values = change if isinstance(change, dict) else {}
        said.append(f"{Change(field, values.get('was'), values.get('now'))} ({at_resume(field).value})")
    return "; ".join(said)


def _bad_step(event: Event) -> str:
    actions = {
        "skip": "the step is skipped, weights stay",
        "rollback": "the run goes back to a checkpoint and leaves its batches out",
        "stop": "the run stops",
    }
    parts = [str(event.get("reason")), actions.get(str(event.get("action")), str(event.get("action")))]
    figures = [f"{name.replace('_', ' ')} {event[name]:.4g}" for name in ("loss", "gradient_norm") if _is(event, name)]
    return "; ".join([*parts, *([", ".join(figures)] if figures else []), *_batch(event)])


def _rollback(event: Event) -> str:
    return f"back to step {event.get('step')}; tokens {_span(event.get('left_out'))} are left out from here on"


def _left_out(event: Event) -> str:
    spans = event.get("tokens")
    spans = spans if isinstance(spans, list) else []
    return f"will leave out tokens {', '.join(map(_span, spans))}, found bad by an earlier start"


def _overflow(event: Event) -> str:
    capsule = [f"saved for a look in {event['capsule']}"] if event.get("capsule") else []
    return "; ".join([str(event.get("message", "")), *_batch(event), *capsule])


def _startup(event: Event) -> str:
    parts = {
        name: event[name] for name in event if name not in ("event", "time", "step", "seconds") and _is(event, name)
    }
    said = ", ".join(f"{name.replace('_', ' ')} {seconds:g}" for name, seconds in parts.items())
    return f"the first step is done {event.get('seconds')} s after the start: {said}"


def _stop(event: Event) -> str:
    if "finished" not in event:
        return ""
    return "the run is complete" if event["finished"] else "stopped on request; the same command continues"


def _init_from(event: Event) -> str:
    notes = event.get("notes")
    return "; ".join([f"weights of {event.get('path')}", *(map(str, notes) if isinstance(notes, list) else [])])


def _message(event: Event) -> str:
    return str(event.get("message", ""))


def _any(event: Event) -> str:
    elsewhere = ("event", "time", "step", "documents", "table")
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in event.items() if name not in elsewhere)


_WORDS: dict[str, Callable[[Event], str]] = {
    "start": _start,
    "resume": _resume,
    "config_change": _config_change,
    "bad_step": _bad_step,
    "rollback": _rollback,
    "left_out": _left_out,
    "overflow": _overflow,
    "startup": _startup,
    "stop": _stop,
    "init_from": _init_from,
    "headroom_warning": _message,
    "checkpoint_problem": _message,
}


def _batch(event: Event) -> list[str]:
    """Where the tokens of an event's batch come from."""
    documents = event.get("documents")
    rows = [one for one in documents if isinstance(one, dict)] if isinstance(documents, list) else []
    corpora = list(dict.fromkeys(str(one["corpus"]) for one in rows if one.get("corpus")))
    of = f" of {', '.join(corpora[:_CORPORA])}{' and others' if len(corpora) > _CORPORA else ''}" if corpora else ""
    said = [f"tokens {_span(event.get('tokens'))}"] if event.get("tokens") else []
    return said + ([f"{len(rows):,} documents{of}"] if rows else [])


def _span(tokens: Any) -> str:
    if isinstance(tokens, dict):
        tokens = tokens.get("tokens")
    if isinstance(tokens, list) and len(tokens) == 2:
        return f"{_count(tokens[0])} to {_count(tokens[1])}"
    return str(tokens)


def _is(event: Event, name: str) -> bool:
    return math.isfinite(number(event.get(name)))


def _of(event: Event, name: str, what: str) -> str:
    count = event.get(name)
    return f"{_count(count)} {what}{'' if count == 1 else 's'}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
