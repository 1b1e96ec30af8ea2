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
    from megatron_kaiyuan.research.probes.design import make_design, split_for_seeds
    from megatron_kaiyuan.research.probes.pages import plan_text
    from megatron_kaiyuan.research.probes.request import read_request

    config, windows = read_request(path, overrides)
    # Nothing is built for a plan; parts have about so many tokens.
    return plan_text(make_design(config, split_for_seeds(config, windows, Path("not built"))))


def probe(
    path: Path,
    overrides: Sequence[str],
    output: Path,
    slots: int | None = None,
    array: Array | None = None,
    force: bool = False,
) -> list[str]:
    """Train and measure every run that is not whole yet, then write the answer: page, plot and JSON.

    Args:
        output: folder that gets `phases`, parts of windows; `queue`, the runs; and `answer`.
        slots, array: see `run_all`.
        force: phases and answer of other windows or settings may be replaced; runs are never.

    Returns:
        Verdicts, a line each.

    Raises:
        UserError: as `plan` and `run_all`; or something else lies where the answer goes.
    """
    require("scipy", extra="research", purpose="the verdicts of a probe")
    from megatron_kaiyuan.research.probes.answer import make_answer
    from megatron_kaiyuan.research.probes.design import make_design, split_for_seeds
    from megatron_kaiyuan.research.probes.pages import answer_page, verdict_lines
    from megatron_kaiyuan.research.probes.parts import build
    from megatron_kaiyuan.research.probes.plot import draw
    from megatron_kaiyuan.research.probes.request import read_request

    config, windows = read_request(path, overrides)
    place = Output(output / "answer", "the answer of a probe")
    identity = identity_of(config.model_dump(mode="json"), [vars(window) for window in windows])
    with claim(place, identity, recorded_folder(FORMAT), force=force):
        windows = split_for_seeds(config, windows, output / "phases")
        if not config.share_documents:
            build(windows, force)
        design = make_design(config, windows, output / "queue")
        design.tasks.write(output / "queue")
        answer = make_answer(design, run_all(output / "queue", design.runs, slots, array))
        with atomic_path(place.path, replace_folder=True) as folder:
            folder.mkdir()
            write_json(folder / "answer.json", answer.as_json())
            draw(answer, folder / "answer.svg")
            write_text(folder / "answer.md", answer_page(answer, "answer.svg"))
            write_record(folder, FORMAT, identity)
    return [*verdict_lines(answer), f"probe: {place.path / 'answer.md'}"]
