"""Table and figures of benchmarks/fp16_stability.py, from the lines that its trials left."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FP16_MAX = 65504.0
TENTHS, DIVERGED_NATS = 10, 0.5
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one trial gave; None stands for what is not finite or did not happen.

    Attributes:
        held_out, unigram: nats per token.
        reached: steps taken.
        ended: why training gave up; empty when it took all its steps.
        first_overflow: step of the first gradient that overflowed at the scale of the time.
        left_range: step of the first forward pass whose loss was not finite.
        skipped: steps without an update.
        peaks: largest |x| of each watched tensor over the run.
        growth: [step, mean |x| of the residual stream after each layer].
        losses: [step, training loss].
    """

    network: str
    precision: str
    rate: float
    seed: int
    steps: int
    held_out: float | None
    unigram: float
    reached: int
    ended: str
    first_overflow: int | None
    left_range: int | None
    skipped: int
    peaks: dict[str, float | None]
    growth: list[Any]
    losses: list[Any]
    seconds: float

    @classmethod
    def of(
        cls,
        trial: dict[str, Any],
        rows: list[Row],
        held_out: tuple[float, float],
        ended: str,
        seconds: float,
    ) -> Outcome:
        """From the rows of metrics.jsonl."""
        events: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            events[row.get("event", "step")].append(row)
        bad, watched = events["bad_step"], events["monitor"]
        overflows = [row["step"] for row in events["loss_scale"] if row["reason"] == "overflow"]
        overflows += [row["step"] for row in bad]
        peaks: dict[str, float | None] = {}
        for row in watched:
            for name, figures in row["activations"].items():
                seen = [peaks.get(name, 0.0), *figures["max"]]
                peaks[name] = None if None in seen else max(seen)
        steps = events["step"]
        return cls(
            **trial,
            held_out=held_out[0] if math.isfinite(held_out[0]) else None,
            unigram=held_out[1],
            reached=steps[-1]["step"] if steps else 0,
            ended=ended,
            first_overflow=min(overflows, default=None),
            left_range=min((row["step"] for row in steps if row["loss"] is None), default=None),
            skipped=len(set(overflows)),
            peaks=peaks,
            growth=[[row["step"], row["activations"]["residual"]["l1"]] for row in watched],
            losses=[[row["step"], row["loss"]] for row in steps],
            seconds=seconds,
        )

    @staticmethod
    def read(path: Path) -> list[Outcome]:
        return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def trial(self) -> tuple[Any, ...]:
        return self.network, self.precision, self.rate, self.seed, self.steps

    @property
    def stable(self) -> bool:
        if self.ended or self.left_range is not None or self.held_out is None:
            return False
        losses = [loss for _, loss in self.losses]
        width = max(len(losses) // TENTHS, 1)
        tenths = [statistics.fmean(losses[at : at + width]) for at in range(0, len(losses) - width + 1, width)]
        return tenths[-1] <= min(tenths) + DIVERGED_NATS

    def summary(self) -> str:
        held_out = "not finite" if self.held_out is None else f"{self.held_out:.3f}"
        state = "stable" if self.stable else "not stable"
        return (
            f"{self.network} {self.precision} lr {self.rate:g} seed {self.seed}: {state}, held-out {held_out} "
            f"(unigram {self.unigram:.3f}), {self.skipped} skipped, {self.seconds:.0f} s"
        )


def write_report(outcomes: Sequence[Outcome], folder: Path, size: str) -> str:
    """Write the table and the figures fp16_stability_SIZE* into a folder; the table."""
    steps = min((outcome.steps for outcome in outcomes), default=0)
    short = [outcome for outcome in outcomes if outcome.steps == steps]
    long = [outcome for outcome in outcomes if outcome.steps > steps]
    text = "\n".join([*_rates(short), "", *_at_each_rate(short), "", *_long(long)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"fp16_stability_{size}_table.txt").write_text(text + "\n")
    _figures(short, long, folder, size)
    return text


def _groups(outcomes: Iterable[Outcome], key: Callable[[Outcome], Any]) -> dict[Any, list[Outcome]]:
    found: dict[Any, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[key(outcome)].append(outcome)
    return dict(found)


def highest_stable_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Of one network and precision: the rate up to which all seeds were stable; None: not even the first was."""
    highest = None
    for rate, trials in sorted(_groups(outcomes, lambda outcome: outcome.rate).items()):
        if not all(trial.stable for trial in trials):
            break
        highest = rate
    return highest


def _rates(outcomes: Sequence[Outcome]) -> list[str]:
    precisions = ("fp16", "bf16", "fp32")
    lines = ["highest stable learning rate (best held-out loss over the ladder: mean of seeds, least to most)"]
    lines.append(f"{'network':32}" + "".join(f"{precision:>30}" for precision in precisions))
    for network, trials in _groups(outcomes, lambda outcome: outcome.network).items():
        cells = []
        for precision in precisions:
            own = [trial for trial in trials if trial.precision == precision]
            cells.append(_rate_cell(own) if own else "")
        lines.append(f"{network:32}" + "".join(f"{cell:>30}" for cell in cells))
    return lines


def _rate_cell(trials: Sequence[Outcome]) -> str:
    highest = highest_stable_rate(trials)
    by_rate = _groups([trial for trial in trials if trial.held_out is not None], lambda outcome: outcome.rate)
    means = {rate: statistics.fmean(one.held_out or 0 for one in own) for rate, own in by_rate.items()}
    rate_text = "none" if highest is None else f"{highest:g}"
    if not means:
        return rate_text
    best = min(means, key=means.__getitem__)
    losses = [one.held_out or 0 for one in by_rate[best]]
    return f"{rate_text} ({means[best]:.3f}, {min(losses):.3f}-{max(losses):.3f})"


def _at_each_rate(outcomes: Sequence[Outcome]) -> list[str]:
    """FP16: what happened at each rate, seeds beside each other."""
    lines = ["FP16 by learning rate, seeds beside each other"]
    head = ("held-out", "skipped", "first skip", "left range", "headroom bits", "least at", "residual L1")
    lines.append(f"{'network':34}{'lr':>7}" + "".join(f"{name:>17}" for name in head))
    half = [outcome for outcome in outcomes if outcome.precision == "fp16"]
    for (network, rate), trials in _groups(half, lambda outcome: (outcome.network, outcome.rate)).items():
        cells = [
            [f"{one.held_out:.2f}" if one.held_out is not None else "-" for one in trials],
            [str(one.skipped) for one in trials],
            [str(one.first_overflow or "-") for one in trials],
            [str(one.left_range or "-") for one in trials],
            [f"{_headroom(one)[0]:.1f}" for one in trials],
            [_headroom(one)[1] for one in trials[:1]],
            [_growth(one) for one in trials],
        ]
        lines.append(f"{network:34}{rate:>7g}" + "".join(f"{' '.join(cell):>17}" for cell in cells))
    return lines


def _headroom(outcome: Outcome) -> tuple[float, str]:
    """Least bits to 65,504 over the watched steps, and of which tensor; minus infinity beyond the range."""
    if not outcome.peaks:
        return math.nan, "-"
    if None in outcome.peaks.values():
        return -math.inf, "-"  # one makes the others infinite
    name = max(outcome.peaks, key=lambda one: outcome.peaks[one] or 0)
    return math.log2(FP16_MAX / max(outcome.peaks[name] or 0, 1e-9)), name


def _growth(outcome: Outcome) -> str:
    """Mean |x| after the last layer, at the last watched step over the first one."""
    ends = [row[1][-1] for row in outcome.growth if row[1][-1] is not None]
    return f"{ends[-1] / ends[0]:.0f}x" if len(ends) > 1 else "-"


def _long(outcomes: Sequence[Outcome]) -> list[str]:
    lines = ["long runs, FP16"]
    for outcome in outcomes:
        bits, name = _headroom(outcome)
        held_out = "not finite" if outcome.held_out is None else f"{outcome.held_out:.3f}"
        lines.append(
            f"{outcome.network:32}{outcome.rate:>7g} seed {outcome.seed}: {outcome.reached} of {outcome.steps} steps, "
            f"held-out {held_out}, {outcome.skipped} skipped, least headroom {bits:.1f} bits ({name}), "
            f"residual L1 {_growth(outcome)}"
        )
    return lines


def _figures(short: Sequence[Outcome], long: Sequence[Outcome], folder: Path, size: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "kaiyuan"
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9))
    half = [outcome for outcome in short if outcome.precision == "fp16"]
    combined = [outcome for outcome in half if "," not in outcome.network]
    _loss_by_rate(axes[0][0], combined, "FP16: held-out loss by learning rate (mean of seeds)")
    _loss_by_rate(axes[0][1], [one for one in half if "," in one.network], "FP16: variants of single choices")
    _layers(axes[1][0], long)
    _steps(axes[1][1], long)
    figure.tight_layout()
    figure.savefig(folder / f"fp16_stability_{size}.svg", metadata={"Date": None})
    pyplot.close(figure)


def _loss_by_rate(axes: Axes, outcomes: Sequence[Outcome], title: str) -> None:
    for network, trials in _groups(outcomes, lambda outcome: outcome.network).items():
        points = []
        for rate, own in sorted(_groups(trials, lambda outcome: outcome.rate).items()):
            losses = [one.held_out for one in own if one.held_out is not None and not one.ended]
            if len(losses) == len(own):
                points.append((rate, statistics.fmean(losses)))
        axes.plot(*zip(*points, strict=True), marker="o", label=network) if points else None
    if outcomes:
        axes.axhline(outcomes[0].unigram, color="#888888", linestyle=":", label="unigram entropy")
    axes.set(xscale="log", title=title, xlabel="peak learning rate", ylabel="nats per token")
    axes.set_ylim(top=(outcomes[0].unigram + 1.5) if outcomes else None)
    axes.legend(fontsize=7)


def _layers(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """Mean |x| after each layer at the last watched step, as the report's figure."""
    for outcome in outcomes:
        if outcome.growth and outcome.seed == 0:
            values = outcome.growth[-1][1]
            axes.plot(range(1, len(values) + 1), [math.nan if v is None else v for v in values], label=outcome.network)
    axes.set(yscale="log", title="long runs: residual stream after each layer", xlabel="layer", ylabel="mean |x|")
    axes.legend(fontsize=7)


def _steps(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.seed == 0:
            points = [(step, values[-1]) for step, values in outcome.growth if values[-1] is not None]
            axes.plot(*zip(*points, strict=True), label=outcome.network) if points else None
    axes.set(yscale="log", title="long runs: residual stream after the last layer", xlabel="step", ylabel="mean |x|")
    axes.legend(fontsize=7)
