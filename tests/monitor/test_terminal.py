"""The panel on a real pseudo-terminal, read from an emulator's screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from megatron_kaiyuan.monitor.terminal import Terminal, _items, _wrapped
from tests.helpers.processes import pseudo_terminal
from tests.helpers.processes.pseudo_terminal import PseudoTerminal
from tests.helpers.training.sample_run import ROW

JOB = Path(pseudo_terminal.__file__).with_name("terminal_job.py")


@pytest.fixture(scope="module")
def one_process() -> Iterator[PseudoTerminal]:
    with PseudoTerminal(JOB) as terminal:
        yield terminal


Begin = Callable[[int, int], PseudoTerminal]


@pytest.fixture
def begin(one_process: PseudoTerminal) -> Begin:
    """Of a terminal of so many columns and rows, empty."""

    def with_size(columns: int, rows: int) -> PseudoTerminal:
        one_process.begin_again(columns, rows)
        return one_process

    return with_size


def row(step: int, **more: Any) -> dict[str, Any]:
    return {**ROW, "step": step, "tokens": 1000 * step, "mfu": 0.345, "peak_memory_bytes": 3 << 30, **more}


def panel(step: int, columns: int = 80, newest: dict[str, tuple[int, float]] | None = None, **more: Any) -> list[str]:
    items = _items(row(step, **more), 1000, newest or {})
    return [line.text for line in _wrapped(items, columns - 1, colours=False)]


def test_rows_are_drawn_in_place_and_lines_scroll_above(begin: Begin) -> None:
    terminal = begin(80, 12)
    said = []
    for step in range(10, 310, 10):
        terminal.do("row", row(step))
        terminal.do("event", "checkpoint", {"step": step})
        said.append(f"checkpoint: step {step}")
        assert terminal.lines == [*said, *panel(step)]
    terminal.do("out", "of standard output\nand a second line\n")
    terminal.do("err", "of standard error\n")
    said += ["of standard output", "and a second line", "of standard error"]
    assert terminal.lines == [*said, *panel(300)]
    terminal.do("close")
    terminal.do("err", "after the end\n")
    assert terminal.lines == [*said, *panel(300), "after the end"]
    assert b"\x1b[2m" in terminal.written


def test_every_figure_is_in_the_panel() -> None:
    shown = "  ".join(panel(10, loss_scale=1024.0, newest={"validation/loss": (5, 3.21)}))
    for figure in (
        "step 10/1000 (1.0%)", "left 0:33:00", "mean loss 5.5000", "validation/loss 3.21 (step 5)", "lr 1.00e-03",
        "grad norm 0.50", "loss scale 1024", "tokens/s 500", "MFU 34.5%", "memory 3.00 GiB", "phase first",
    ):  # fmt: skip
        assert figure in shown
    skipped = "  ".join(panel(10, grad_norm=None, loss_mean=None))
    assert "step skipped" in skipped and "mean loss not finite" in skipped


def test_a_validation_stays_with_its_step_until_a_rollback(begin: Begin) -> None:
    terminal = begin(80, 12)
    terminal.do("show", "validation/loss")
    terminal.do("row", row(10, **{"validation/loss": 3.25}))
    terminal.do("row", row(20))
    assert terminal.lines == panel(20, newest={"validation/loss": (10, 3.25)})
    terminal.do("event", "rollback", {"step": 5})
    terminal.do("row", row(6))
    assert terminal.lines == ["rollback: step 5", *panel(6)]


@pytest.mark.parametrize("columns", [40, 20, 5])
def test_narrow_terminals(columns: int, begin: Begin) -> None:
    terminal = begin(columns, 20)
    terminal.do("row", row(10))
    terminal.do("err", "x\n")
    terminal.do("row", row(20))
    assert terminal.lines == ["x", *(line.rstrip() for line in panel(20, columns))]
    assert all(cell_len(line) < columns for line in panel(20, columns))


def test_a_terminal_with_few_rows_keeps_one_for_lines(begin: Begin) -> None:
    terminal = begin(40, 3)
    for step in (10, 20, 30):
        terminal.do("row", row(step))
        terminal.do("err", f"line {step}\n")
    assert terminal.lines == ["line 10", "line 20", "line 30", *panel(30, 40)[:2]]


def test_a_window_that_changes_its_size(begin: Begin) -> None:
    """Lines stay whole; where the old panel no longer fits, it stays too and the next one begins below."""
    terminal = begin(80, 20)
    terminal.do("err", "first\n")
    terminal.do("row", row(10))
    terminal.resize(120, 20)
    terminal.do("row", row(20))
    assert terminal.lines == ["first", *panel(20, 120)]
    terminal.resize(40, 20)
    terminal.do("err", "second\n")
    terminal.do("row", row(30))
    old = [line[:40].rstrip() for line in panel(20, 120)]
    assert terminal.lines == ["first", *old, "second", *panel(30, 40)]


def test_stop_and_continue(begin: Begin) -> None:
    terminal = begin(80, 20)
    terminal.do("row", row(10))
    terminal.stop_and_continue(b"^Z\r\n[1]+  Stopped\r\n$ fg\r\n")
    terminal.do("row", row(20))
    last = [*panel(10)[:-1], panel(10)[-1] + "^Z"]
    assert terminal.lines == [*last, "[1]+  Stopped", "$ fg", *panel(20)]


def test_a_terminal_that_is_lost_stops_nothing() -> None:
    with PseudoTerminal(JOB) as terminal:
        terminal.do("row", row(10))
        terminal.hang_up()
        for step in (20, 30):
            terminal.do("row", row(step))
            terminal.do("event", "checkpoint", {"step": step})
        terminal.do("close")


def test_bars_and_lines_in_pieces_are_not_torn(begin: Begin) -> None:
    terminal = begin(80, 12)
    terminal.do("row", row(10))
    terminal.do("err", "half of")
    assert terminal.lines == ["half of"]
    terminal.do("err", " a line\n")
    assert terminal.lines == ["half of a line", *panel(10)]
    terminal.do("err", "\rsave: 50%")
    terminal.do("row", row(20))
    assert terminal.lines == ["half of a line", "save: 50%", *panel(20)]


def test_a_message_past_locks_begins_on_a_line_of_its_own(begin: Begin) -> None:
    terminal = begin(80, 20)
    terminal.do("row", row(10))
    terminal.do("at once", "hang: rank 0")
    terminal.do("row", row(20))
    assert terminal.lines == [*panel(10), "hang: rank 0", *panel(20)]


def test_an_encoding_without_the_letters_of_a_phase() -> None:
    with PseudoTerminal(JOB, variables={"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}) as terminal:
        terminal.do("row", row(10, phase="第一\x1b[2J"))
        assert "phase \\u7b2c\\u4e00?[2J" in "  ".join(terminal.lines)
        terminal.do("row", row(20))
        assert terminal.lines == panel(20)


def test_wide_letters_take_two_columns(begin: Begin) -> None:
    terminal = begin(20, 20)
    terminal.do("row", row(10, phase="第一" * 9))
    terminal.do("row", row(20))
    assert terminal.lines == panel(20, 20)


@pytest.mark.parametrize(
    "variables", [{"TERM": "dumb"}, {"TERM": ""}, {"NOT_ALONE": "1"}, {"KAIYUAN_LOG_LEVEL": "error"}]
)
def test_no_panel(variables: dict[str, str]) -> None:
    with PseudoTerminal(JOB, columns=200, variables=variables) as terminal:
        terminal.do("row", row(10))
        quiet = "KAIYUAN_LOG_LEVEL" in variables
        assert [line.split(" |")[0] for line in terminal.lines] == ([] if quiet else ["step   10/1000"])
    assert b"\x1b" not in terminal.written


def test_no_color() -> None:
    with PseudoTerminal(JOB, variables={"NO_COLOR": "1"}) as terminal:
        terminal.do("row", row(10))
        assert terminal.lines == panel(10)
    assert b"\x1b" not in terminal.written


def test_terminal_line_is_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(total_steps=107).write(ROW)
    line = capsys.readouterr().err
    for part in (
        "step   7/107",
        "mean loss of 10 steps 5.5000",
        "lr 1.00e-03",
        "grad norm 0.50",
        "500 tokens/s",
        "0:03:20 left",
    ):
        assert part in line
    assert "loss scale" not in line and "500 tokens/s" in line
    Terminal(107).write({**ROW, "grad_norm": None, "loss_scale": 1024.0})
    line = capsys.readouterr().err
    assert "step skipped" in line and "loss scale 1024" in line and "MFU" not in line
    Terminal(107).write({**ROW, "loss_steps": 1})
    assert "| loss 5.5000 |" in capsys.readouterr().err
    Terminal(107).write({**ROW, "loss": None, "loss_mean": None, "loss_steps": 0})
    assert "loss not finite" in capsys.readouterr().err
    Terminal(107).write({**ROW, "mfu": 0.3456})
    assert "500 tokens/s | MFU 34.6% | 0:03:20 left" in capsys.readouterr().err


def test_a_table_is_aligned_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    table = [{"op": "norm", "why": "tried"}, {"op": "cross-entropy", "why": ""}]
    Terminal(10).event({"event": "averages", "table": table, "time": 1.0})
    assert capsys.readouterr().err == "averages:\n  norm           tried\n  cross-entropy\n"
    Terminal(10).event({"event": "resume", "step": 5, "time": 1.0})
    assert capsys.readouterr().err == "resume: step 5\n"
