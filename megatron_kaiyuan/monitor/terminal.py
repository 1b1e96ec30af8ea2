"""What a person sees of a run: a line a row, or on a terminal a panel that is redrawn in place, and a line an event."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from megatron_kaiyuan import logs, streams
from megatron_kaiyuan.monitor.sinks import Row, Sink
from megatron_kaiyuan.panel import Line, Panel

log = logging.getLogger(__name__)

# Events of a start that few need to read: with --verbose, and in events.jsonl.
_DETAILS = ("implementations", "utilization")
_NOT_IN_A_LINE = ("event", "time", "documents", "table")
_GAP = "  "
_FAINT, _RED, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"


class Terminal(Sink):
    """One line a row that a person can read."""

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._shown: Sequence[str] = ()

    def show(self, names: Sequence[str]) -> None:
        self._shown = names

    def write(self, row: Row) -> None:
        left = (self._total_steps - row["step"]) * row["seconds_per_step"]
        parts = [
            f"step {row['step']:>{len(str(self._total_steps))}}/{self._total_steps}",
            f"{row['tokens'] / 1e6:.2f} M tokens",
            row["phase"],
            _loss(row),
            f"lr {row['lr']:.2e}",
            f"grad norm {row['grad_norm']:.2f}" if row["grad_norm"] is not None else "step skipped",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"{timedelta(seconds=round(left))} left",
        ]
        if row["loss_scale"] != 1:
            parts.insert(-2, f"loss scale {row['loss_scale']:g}")
        if row.get("mfu") is not None:
            parts.insert(-1, f"MFU {row['mfu']:.1%}")
        for name in self._shown:
            if row.get(name) is not None:
                parts.insert(-1, f"{name} {row[name]:.4g}")
        if "slowest_node" in row:
            times = "/".join(f"{row[f'rank_seconds_{name}']:.3g}" for name in ("min", "median", "max"))
            parts.insert(-1, f"ranks {times} s (slowest {row['slowest_rank']} on {row['slowest_node']})")
        log.info(" | ".join(parts))

    def event(self, row: Row) -> None:
        details = ", ".join(f"{key} {value}" for key, value in row.items() if key not in _NOT_IN_A_LINE)
        level = logging.DEBUG if row["event"] in _DETAILS else logging.INFO
        log.log(level, "\n".join([f"{row['event']}: {details}".rstrip(), *_aligned(row.get("table", []))]))


class LiveTerminal(Terminal):
    """The newest row as a panel at the foot of the terminal; a line a row while the process does not have it.

    What is shown besides the columns of every row, as a validation's loss, stays with the step that it is of.
    """

    def __init__(self, total_steps: int, panel: Panel):
        super().__init__(total_steps)
        self._panel = panel.__enter__()
        self._colours = not os.environ.get("NO_COLOR")
        self._newest: dict[str, tuple[int, float]] = {}

    def write(self, row: Row) -> None:
        self._newest.update({name: (row["step"], row[name]) for name in self._shown if row.get(name) is not None})
        if self._panel.has_terminal():
            items = _items(row, self._total_steps, self._newest)
            self._panel.show(lambda columns: _wrapped(items, columns, self._colours))
        else:
            super().write(row)

    def event(self, row: Row) -> None:
        if row["event"] == "rollback":
            self._newest = {name: kept for name, kept in self._newest.items() if kept[0] <= row["step"]}
        super().event(row)

    def close(self) -> None:
        self._panel.__exit__()


def open_terminal(total_steps: int, alone: bool) -> Terminal:
    """Return a panel on a terminal that this process has to itself, elsewhere lines.

    Args:
        alone: no other rank may write to the terminal.
    """
    panel = Panel()
    if alone and streams.reach_terminal() and logs.shows_bars() and panel.has_terminal():
        return LiveTerminal(total_steps, panel)
    return Terminal(total_steps)


class _Item(NamedTuple):
    """A figure of the panel: its name, which may be empty, its value, and whether it is a fault."""

    name: str
    value: str
    fault: bool = False


def _items(row: Row, total_steps: int, newest: Mapping[str, tuple[int, float]]) -> list[_Item]:
    """Return the figures of a panel, in the order in which they are read."""
    step, mean, mfu, memory = row["step"], row["loss_mean"], row.get("mfu"), row.get("peak_memory_bytes")
    left = timedelta(seconds=round((total_steps - step) * row["seconds_per_step"]))
    skipped = row["grad_norm"] is None
    items = [
        _Item("step", f"{step}/{total_steps} ({step / max(total_steps, 1):.1%})"),
        _Item("left", str(left)),
        _Item("mean loss", "not finite" if mean is None else f"{mean:.4f}", mean is None),
        *(
            _Item(name, f"{value:.4g}" + ("" if at == step else f" (step {at})"))
            for name, (at, value) in newest.items()
        ),
        _Item("lr", f"{row['lr']:.2e}"),
        _Item("grad norm", "step skipped" if skipped else f"{row['grad_norm']:.2f}", skipped),
        *([_Item("loss scale", f"{row['loss_scale']:g}")] if row["loss_scale"] != 1 else []),
        _Item("tokens/s", f"{row['tokens_per_second']:,.0f}"),
        *([_Item("MFU", f"{mfu:.1%}")] if mfu is not None else []),
        *([_Item("memory", f"{memory / 2**30:.2f} GiB")] if memory else []),
        _Item("phase", row["phase"]),
        _Item("tokens", f"{row['tokens'] / 1e6:.2f} M"),
    ]
    return [_Item(item.name, _printable(item.value), item.fault) for item in items]


def _wrapped(items: Sequence[_Item], columns: int, colours: bool) -> list[Line]:
    """Return the items in as few lines as hold them; one that is wider than the terminal is cut."""
    lines: list[Line] = []
    for item in items:
        text = f"{item.name} {item.value}"
        if cell_len(text) > columns:
            text = set_cell_size(text, columns)
        width = cell_len(text)
        if colours:
            name, value = text[: len(item.name) + 1], text[len(item.name) + 1 :]
            text = f"{_FAINT}{name}{_PLAIN}{_RED if item.fault else ''}{value}{_PLAIN}"
        if lines and lines[-1].width + len(_GAP) + width <= columns:
            lines[-1] = Line(lines[-1].text + _GAP + text, lines[-1].width + len(_GAP) + width)
        else:
            lines.append(Line(text, width))
    return lines


def _printable(text: str) -> str:
    """Return the text without what moves a cursor, or what the terminal's encoding lacks."""
    encoding = sys.stderr.encoding or "ascii"
    text = "".join(one if one.isprintable() else "?" for one in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _loss(row: Row) -> str:
    """The mean since the last line: that of one step goes up and down with its documents."""
    if row["loss_mean"] is None:
        return "loss not finite"
    of = f"mean loss of {row['loss_steps']} steps" if row["loss_steps"] > 1 else "loss"
    return f"{of} {row['loss_mean']:.4f}"


def _aligned(table: Sequence[Mapping[str, str]]) -> list[str]:
    """A table's rows as lines, each column as wide as its widest text."""
    columns = zip(*(row.values() for row in table), strict=True)
    padded = [[text.ljust(max(map(len, column))) for text in column] for column in map(list, columns)]
    return ["  " + "  ".join(line).rstrip() for line in zip(*padded, strict=True)]
