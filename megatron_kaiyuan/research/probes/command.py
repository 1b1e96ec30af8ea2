"""`kaiyuan probe`: from `probes.yaml` to an answer, or to the plan of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan.errors import require
from megatron_kaiyuan.files import atomic_path, write_json, write_text
from megatron_kaiyuan.outputs import Output, claim, identity_of, recorded_folder, write_record
from megatron_kaiyuan.research.queue import run_all
from megatron_kaiyuan.research.queue.slurm import Array

FORMAT = "kaiyuan-probe-answer"


def plan(path: Path, overrides: Sequence[str]) -> str:
    """What `probes.yaml` asks for, what it costs and what it can find; nothing is trained.

    Raises:
        UserError: a file, a field or a window is wrong; the message names it.
    """
    require("scipy", extra="research", purpose="the power of a probe")
    from megatron_kaiyuan.research.probes.design import make_design
    from megatron_kaiyuan.research.probes.pages import plan_text
    from megatron_kaiyuan.research.probes.request import read_request

    return plan_text(make_design(*read_request(path, overrides)))


def probe(
    path: Path, overrides: Sequence[str], slots: int | None = None, array: Array | None = None, force: bool = False
) -> list[str]:
    """Train and measure every run that is not whole yet, then write `OUTPUT/answer/`: page, plot and JSON.

    Args:
        slots, array: see `run_all`.
        force: the answer of other settings may be replaced; runs are never.

    Returns:
        Verdicts, a line each.

    Raises:
        UserError: as `plan` and `run_all`; or something else lies where the answer goes.
    """
    require("scipy", extra="research", purpose="the verdicts of a probe")
    from megatron_kaiyuan.research.probes.answer import make_answer
    from megatron_kaiyuan.research.probes.design import make_design
    from megatron_kaiyuan.research.probes.pages import answer_page, verdict_lines
    from megatron_kaiyuan.research.probes.plot import draw
    from megatron_kaiyuan.research.probes.request import read_request

    config, windows = read_request(path, overrides)
    design = make_design(config, windows)
    place = Output(config.output / "answer", "the answer of a probe", "output")
    identity = identity_of(config.model_dump(mode="json"), [vars(window) for window in windows])
    with claim(place, identity, recorded_folder(FORMAT), force=force):
        answer = make_answer(design, run_all(config.output / "queue", design.runs, slots, array))
        with atomic_path(place.path, replace_folder=True) as folder:
            folder.mkdir()
            write_json(folder / "answer.json", answer.as_json())
            draw(answer, folder / "answer.svg")
            write_text(folder / "answer.md", answer_page(answer, "answer.svg"))
            write_record(folder, FORMAT, identity)
    return [*verdict_lines(answer), f"probe: {place.path / 'answer.md'}"]
