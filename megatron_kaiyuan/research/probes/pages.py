"""The plan and the answer of a probe as text, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_kaiyuan.research.probes.answer import Measure, ProbeAnswer, planned_noise, share_of_main_run
from megatron_kaiyuan.research.probes.design import Design
from megatron_kaiyuan.research.probes.request import MEAN
from megatron_kaiyuan.research.probes.trend import detectable_difference

_SURFACE = (
    "Probes of this size rank surface quality (spelling, layout, how regular a text is), not knowledge: a network that "
    "learns words and grammar cannot show what a text knows, and text of few different words looks better to it than "
    "it is. Before a decision about knowledge-dense data, look at larger networks and at their tasks."
)
_SHARED = (
    "All seeds of a window saw the same documents. The intervals hold what another seed would change, not what other "
    "documents of the same quantile would; so the trends are judged by the spread between the windows, and a course "
    "that is not monotone cannot be told from it. For more, leave out share_documents, or give a phase for each seed."
)
_TASKS = (
    "Tasks are measured as bits per byte of their right answers' text after its context: all bits of a task over all "
    "its answers' bytes. Accuracy is not shown: for networks of this size it is chance. {}."
)
_VERDICTS = (
    "Bits per byte along the quantile, from the best scores on: `rising` says that worse scores make a worse network. "
    "Windows that do not differ are called anything but `cannot tell` with a chance of at most {:g} %, for all "
    "measures of a dataset under one protocol together. Slope: bits per byte from quantile 0 to 1. Found with 80 %: "
    "the difference between the first and the last window of a straight course."
)
_FIGURES = (
    "Bits per byte, lower is better. Intervals of {:g} % to compare windows with: seeds are paired, and what a seed "
    "shares with all windows is not in them. SD of a paired difference {:.4f}, pooled over all windows ({} degrees of "
    "freedom); a difference of {:.4f} between two windows is found with 80 %."
)
_VERDICT_COLUMNS = (
    "dataset",
    "protocol",
    "measure",
    "verdict",
    "slope",
    "p (no slope)",
    "p (monotone)",
    "found with 80 %",
)


def plan_text(design: Design) -> str:
    """What will be run, what it costs, and what it can find."""
    config = design.config
    noise = planned_noise(design)
    found = detectable_difference(config.seeds, noise, config.significance)
    lines = [
        f"plan: {len(design.runs)} runs: {len(design.windows)} windows x {config.seeds} seeds x "
        f"{sum(len(config.factors(protocol)) for protocol in config.protocols)} learning rates "
        f"({', '.join(config.protocols)}), {design.steps:,} steps and {design.tokens:,} tokens each",
        f"cost: {_cost(design)}",
        f"detectable: two windows that differ by {found:.4f} bits per byte are told apart with 80 % at significance "
        f"{config.significance:g}, if runs of one seed differ by {config.expected_sd:g} (expected_sd; "
        f"{noise.freedom} degrees of freedom)",
        *design.tasks.describe(),
        _SURFACE,
    ]
    return "\n".join([*lines, *([_SHARED] if design.shared_documents else [])])


def verdict_lines(answer: ProbeAnswer) -> list[str]:
    """One line for each dataset, protocol and task, and one by the mean over the domains or the only one."""
    lines = []
    for measure in answer.measures:
        config = answer.design.config
        if measure.name in (MEAN, *config.task_measures) or len(config.held_out) == 1:
            for dataset, trend in measure.trends.items():
                lines.append(
                    f"{dataset}, {measure.protocol}, {measure.name}: {trend.verdict} (slope {trend.slope:+.4f} bits "
                    f"per byte from the best to the worst, p {_p(trend.p_linear)}; found with 80 %: "
                    f"{trend.detectable:.4f})"
                )
    return lines


def answer_page(answer: ProbeAnswer, plot: str) -> str:
    """The answer as a page.

    Args:
        plot: name of the plot's file, beside the page.
    """
    design = answer.design
    parts = [
        "# Probes",
        f"{len(design.windows)} windows, {design.config.seeds} paired seeds, {design.steps:,} steps and "
        f"{design.tokens:,} tokens a run. {_cost(design)}.",
        _SURFACE,
        *([_SHARED] if design.shared_documents else []),
        *([_TASKS.format(". ".join(design.tasks.describe()))] if design.tasks.tasks else []),
        *_verdicts(answer),
        f"![bits per byte by quantile]({plot})",
    ]
    for measure in answer.measures:
        parts += _figures(measure, design.config.significance)
    return "\n\n".join([*parts, *_portraits(design)]) + "\n"


def _cost(design: Design) -> str:
    share = share_of_main_run(design)
    of_main = "" if share is None else f", {100 * share:.2g} % of the main run's"
    return f"{design.flops:.2e} FLOPs in all, measuring included{of_main}"


def _verdicts(answer: ProbeAnswer) -> Iterator[str]:
    yield "## Verdicts"
    yield _VERDICTS.format(100 * answer.design.config.significance)
    rows = [
        [
            dataset,
            measure.protocol,
            measure.name,
            f"**{trend.verdict}**",
            f"{trend.slope:+.4f}",
            _p(trend.p_linear),
            _p(max(trend.p_not_rising, trend.p_not_falling)),
            f"{trend.detectable:.4f}",
        ]
        for measure in answer.measures
        for dataset, trend in measure.trends.items()
    ]
    if rows:
        yield _table(_VERDICT_COLUMNS, rows)
    if answer.too_few:
        yield f"Too few windows for a verdict: {', '.join(answer.too_few)}."


def _figures(measure: Measure, level: float) -> Iterator[str]:
    yield f"## {measure.protocol}: {measure.name}"
    yield _FIGURES.format(100 * (1 - level), measure.paired_sd, measure.freedom, measure.detectable)
    yield _table(
        ["window", "dataset", "quantile", "learning rate", "bits per byte", "against the best quantile"],
        [
            [
                one.window,
                one.dataset or "",
                "" if one.quantile is None else f"{one.quantile:g}",
                f"x {one.lr_factor:g}",
                f"{one.mean:.4f} ± {one.half_width:.4f}",
                "" if one.difference is None else f"{one.difference:+.4f} ± {one.difference_half_width:.4f}",
            ]
            for one in measure.windows
        ],
    )


def _portraits(design: Design) -> Iterator[str]:
    """What the windows' documents are like: the plain figures of their portraits."""
    plain = {
        window.name: {name: value for name, value in window.portrait.items() if isinstance(value, int | float | str)}
        for window in design.windows
    }
    names = list(dict.fromkeys(name for portrait in plain.values() for name in portrait))
    if names:
        yield "## Portraits"
        yield _table(
            ["window", *names],
            [[window, *(_plain(portrait.get(name, "")) for name in names)] for window, portrait in plain.items()],
        )


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _p(chance: float) -> str:
    return "< 0.0001" if chance < 0.0001 else f"{chance:.4f}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
