"""`kaiyuan plan` beside published training runs: speeds, each also with the other runs' utilization; choice of layout.

    python -m benchmarks.published_runs

On paper, in a minute: nothing is trained. A kind of device has one utilization, that of its matrix products, which is
least wrong, as a ratio, for all of its runs. "others": that of the other runs alone, so that a run has no part in its
own plan. Then many layouts of one network that a team has measured: which of them does the plan rank first, and how
long is its measured step beside the shortest? What a source does not give is assumed; the last lines say so.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from scipy.stats import spearmanr

from benchmarks.published_data import RUNS, Published, measured_layouts, recipe_of
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning import links
from megatron_kaiyuan.planning.calibrate import products_mfu
from megatron_kaiyuan.planning.layouts import legal_layouts
from megatron_kaiyuan.planning.memory import fullest_stage
from megatron_kaiyuan.planning.plan import USABLE
from megatron_kaiyuan.planning.speed import flops_per_token, speed
from megatron_kaiyuan.platform.figures import DEVICES, Device


@dataclass(frozen=True)
class Run:
    """A published run as a recipe of ours."""

    published: Published
    recipe: RunConfig

    @property
    def device(self) -> Device:
        return DEVICES[self.published.device]

    @property
    def tokens(self) -> float:
        """Published tokens a second of a device."""
        return self.published.tokens or (self.published.tflops or 0) * 1e12 / flops_per_token(self.recipe)

    def planned(self, mfu: float) -> float:
        """Planned tokens a second of a device."""
        found = speed(self.recipe, self.published.gpus, self.device, mfu, self.published.overlap)
        assert found is not None
        return found.tokens_per_second / self.published.gpus

    def utilization(self) -> float:
        """Of matrix products, at which the plan is right for this run."""
        published = self.published
        tokens = self.tokens * published.gpus
        found = products_mfu(self.recipe, published.gpus, self.device, tokens, published.overlap)
        assert found is not None
        return found


def all_runs() -> list[Run]:
    """The published runs, and of each network in many layouts the fastest."""
    fastest: dict[tuple[str, int], Published] = {}
    for published, _ in measured_layouts():
        key = published.name, published.gpus
        if key not in fastest or (published.tokens or 0) > (fastest[key].tokens or 0):
            fastest[key] = published
    with tempfile.TemporaryDirectory() as folder:
        return [Run(published, recipe_of(published, Path(folder))) for published in (*RUNS, *fastest.values())]


def middle(values: Iterable[float]) -> float:
    """The value whose ratio to the smallest and to the largest is the same."""
    found = list(values)
    return math.sqrt(min(found) * max(found))


def speed_ratios(runs: Sequence[Run]) -> list[tuple[float, float, float]]:
    """Of each run its own utilization, planned over published speed, and the same with the other runs' utilization."""
    own = [run.utilization() for run in runs]
    found = []
    for index, run in enumerate(runs):
        others = [mfu for place, mfu in enumerate(own) if place != index and runs[place].device is run.device]
        planned = run.planned(run.device.assumed_mfu), run.planned(middle(others))
        found.append((own[index], planned[0] / run.tokens, planned[1] / run.tokens))
    return found


def best_layout(run: Run) -> tuple[str, float]:
    """The fastest layout of the plan that fits, and its tokens a second of a device."""
    gpus, device = run.published.gpus, run.device
    usable, found = device.memory_bytes(gpus) * USABLE, []
    for layout in legal_layouts(run.recipe, gpus):
        if fullest_stage(layout, gpus, device).device.total <= usable:
            tokens = Run(run.published, layout).planned(device.assumed_mfu)
            found.append((tokens, name_of(layout)))
    if not found:
        raise UserError("no layout fits")
    fastest = max(found)[0]
    tokens, name = max(found, key=lambda one: (round(one[0] / fastest, 2), -len(one[1])))
    return name, tokens


def name_of(layout: RunConfig) -> str:
    parallel = layout.parallel
    virtual = f"x{parallel.virtual_pipeline_model_parallel_size}" if parallel.virtual_stages else ""
    sequence = " SP" if parallel.sequence_parallel else ""
    return f"TP {parallel.tensor_model_parallel_size}{sequence} PP {parallel.pipeline_model_parallel_size}{virtual}"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def print_speeds() -> list[Run]:
    runs = all_runs()
    ratios = speed_ratios(runs)
    rows = []
    for run, (own, ratio, of_others) in zip(runs, ratios, strict=True):
        published, peak = run.published, run.device.half_tflops or 0
        mfu = run.tokens * flops_per_token(run.recipe) / peak / 1e12
        try:
            name, best = best_layout(run)
            choice = [name, f"{best:,.0f}", f"{run.planned(run.device.assumed_mfu) / best:.2f}"]
        except UserError:
            choice = ["none fits", "", ""]
        row = [published.name, f"{published.gpus} x {published.device}", name_of(run.recipe), f"{run.tokens:,.0f}"]
        rows.append([*row, f"{mfu:.1%}", f"{own:.2f}", f"{ratio:.2f}", f"{of_others:.2f}", *choice])
    head = ["run", "devices", "layout", "tokens/s", "MFU, causal", "products", "planned/published", "others"]
    print_table([*head, "plan's best", "tokens/s planned", "theirs/best"], rows)
    for device in dict.fromkeys(run.device for run in runs):
        mine = [ratio for run, ratio in zip(runs, ratios, strict=True) if run.device is device]
        fitted, left_out = [ratio for _, ratio, _ in mine], [ratio for _, _, ratio in mine]
        print(
            f"{device.name}: {len(mine)} runs, products {middle(own for own, _, _ in mine):.2f} of the peak; "
            f"planned/published {min(fitted):.2f} to {max(fitted):.2f}, median {statistics.median(fitted):.2f}; "
            f"with the others' utilization {min(left_out):.2f} to {max(left_out):.2f}"
        )
    low, high = across_kinds(runs, [own for own, _, _ in ratios])
    print(
        f"all kinds: products {middle(own for own, _, _ in ratios):.2f} of the peak; with the utilization of the other "
        f"kinds of device planned/published {low:.2f} to {high:.2f}"
    )
    return runs


def across_kinds(runs: Sequence[Run], own: Sequence[float]) -> tuple[float, float]:
    """Least and most of planned over published speed, each kind of device planned with the others' utilization."""
    ratios = []
    for run in runs:
        others = [mfu for mfu, other in zip(own, runs, strict=True) if other.device is not run.device]
        ratios.append(run.planned(middle(others)) / run.tokens)
    return min(ratios), max(ratios)


@dataclass(frozen=True)
class Choice:
    """Of a network on so many devices what the plan ranks first among the layouts that were measured.

    Attributes:
        chosen: measured seconds of a step in that layout.
        best: the fewest measured.
        correlation: Spearman's, of planned and measured seconds.
    """

    name: str
    layouts: int
    first: str
    chosen: float
    fastest: str
    best: float
    correlation: float


def choices() -> list[Choice]:
    """For each network and number of devices; a layout that our recipes refuse is left out."""
    groups: dict[str, list[tuple[float, float, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for published, seconds in measured_layouts():
            try:
                run = Run(published, recipe_of(published, Path(folder)))
            except UserError:
                continue
            name = f"{name_of(run.recipe)} micro {published.micro_batch}"
            key = f"{published.name} on {published.gpus} x {published.device}"
            groups.setdefault(key, []).append((1 / run.planned(run.device.assumed_mfu), seconds, name))
    found = []
    for key, measured in groups.items():
        first, best = min(measured), min(measured, key=lambda one: one[1])
        planned, taken, _ = zip(*measured, strict=True)
        correlation = float(spearmanr(planned, taken).statistic) if len(measured) > 2 else math.nan
        found.append(Choice(key, len(measured), first[2], first[1], best[2], best[1], correlation))
    return found


def print_choices() -> None:
    with patch.object(links, "SHARED_CARDS", 1.0):
        alone = choices()
    rows = []
    for choice, other in zip(choices(), alone, strict=True):
        row = [choice.name, str(choice.layouts), choice.first, f"{choice.chosen:.1f}", choice.fastest]
        row += [f"{choice.best:.1f}", f"{choice.chosen / choice.best:.3f}"]
        rows.append([*row, f"{choice.correlation:.2f}", f"{other.chosen / other.best:.3f}"])
    head = ["network", "layouts", "plan's first", "measured s", "fastest", "measured s", "first/fastest"]
    print_table([*head, "rank correlation", f"first/fastest without {links.SHARED_CARDS} for shared cards"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    runs = print_speeds()
    print()
    print_choices()
    print()
    for source in dict.fromkeys(run.published.source for run in runs):
        mine = [run.published for run in runs if run.published.source == source]
        notes = sorted({published.assumed for published in mine if published.assumed})
        names = ", ".join(dict.fromkeys(published.name for published in mine))
        print(f"{names}: {source}" + (f"; assumed: {'; '.join(notes)}" if notes else ""))


if __name__ == "__main__":
    main()
