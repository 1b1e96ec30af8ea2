"""How often the detector of jumps finds a jump that is there, and one that is not; without training.

    python -m benchmarks.jump_alarms                  simulated runs of known curves
    python -m benchmarks.jump_alarms --scattered      runs that do not agree where the jump is
    python -m benchmarks.jump_alarms --regmix FOLDER  the public runs of RegMix, on ordinary text

Simulated: mixtures as `kaiyuan mix` draws them for datasets of one size, and a held-out domain whose loss follows from
one dataset's share by a curve with or without a jump, from the others by a slope; noise of .01 bits per byte. A jump is
a fall of .2 within .06 of share. Scattered: two datasets at even shares, and a jump whose place is drawn for each run
round .25, as small networks show it (`benchmarks.knowledge_jump`). FOLDER: as of `benchmarks.mixture_law`; each set of 64 of its 512 runs, each domain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_kaiyuan.research.mixture.draw import draw
from megatron_kaiyuan.research.mixture.law import Matrix
from megatron_kaiyuan.research.mixture.reach import jumps

NOISE = 0.01
RUNS, DATASETS, REGMIX_RUNS = (12, 16, 24, 48), (2, 4), 64
SPREADS, SCATTERED_RUNS = (0.06, 0.02), (24, 48, 96)
CURVES: dict[str, Callable[[Matrix], Matrix]] = {
    "straight": lambda share_r: 1 - 0.3 * share_r,
    "law": lambda share_r: 0.5 + np.exp(-2 * share_r) / 2,
    "power law": lambda share_r: 0.3 + 0.2 * (share_r + 0.01) ** -0.3,
    "jump": lambda share_r: 0.3 + 0.2 * (share_r + 0.01) ** -0.3 - 0.2 / (1 + np.exp((0.3 - share_r) / 0.015)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--regmix", type=Path)
    parser.add_argument("--sets", type=int, default=8, help=f"of {REGMIX_RUNS} of RegMix's runs")
    parser.add_argument("--scattered", action="store_true")
    given = parser.parse_args()
    if given.regmix:
        regmix(given.regmix, given.sets)
    elif given.scattered:
        scattered(given.repeats)
    else:
        drawn(given.repeats)


def drawn(repeats: int) -> None:
    """Curves with and without a jump, mixtures as they are drawn."""
    print(f"simulated, a jump found in so many of {repeats} sets of runs; in brackets, of another dataset")
    for datasets in DATASETS:
        for runs in RUNS:
            began = time.perf_counter()
            parts = []
            for name, curve in CURVES.items():
                found, others = zip(*(simulated(curve, datasets, runs, seed) for seed in range(repeats)), strict=True)
                parts.append(f"{name} {sum(found):2} ({sum(others)})")
            seconds = (time.perf_counter() - began) / repeats / len(CURVES)
            print(f"  {datasets} datasets, {runs} runs:  {',  '.join(parts)}   ({seconds:.1f} s each)", flush=True)


def scattered(repeats: int) -> None:
    """Runs that jump at places of their own."""
    for spread in SPREADS:
        parts = []
        for runs in SCATTERED_RUNS:
            share_r = np.linspace(0.05, 0.75, runs)
            shares_rd = np.column_stack([share_r, 1 - share_r])
            found = [
                jumps(["facts", "text"], shares_rd, scattered_losses(share_r, spread, seed)) for seed in range(repeats)
            ]
            parts.append(f"{sum(map(bool, found))} with {runs} runs")
        print(f"places of the jump with an SD of {spread}: found in {', '.join(parts)}, of {repeats} sets", flush=True)


def scattered_losses(share_r: Matrix, spread: float, seed: int) -> Matrix:
    """Bits per byte like those of biographies on 0.2 M parameters, below and above the jump."""
    generator = np.random.default_rng(seed)
    below_r, above_r = 0.5 + 0.013 * share_r**-0.9, 0.22 + 0.035 / share_r
    losses_r = np.where(share_r < generator.normal(0.25, spread, len(share_r)), below_r, above_r)
    return losses_r + generator.normal(0, 0.015, len(share_r))


def simulated(curve: Callable[[Matrix], Matrix], datasets: int, runs: int, seed: int) -> tuple[bool, bool]:
    """Whether a jump is found along the dataset that has the curve, and along another."""
    names = [str(at) for at in range(datasets)]
    shares_rd = draw(names, np.ones(datasets), np.ones(datasets), runs, seed)
    slopes_d = np.linspace(-0.1, 0.1, datasets)
    losses_r = curve(shares_rd[:, 0]) + shares_rd @ slopes_d + np.random.default_rng(seed).normal(0, NOISE, runs)
    found = {jump.dataset for jump in jumps(names, shares_rd, losses_r, seed=seed)}
    return "0" in found, bool(found - {"0"})


def regmix(folder: Path, sets: int) -> None:
    """Ordinary text: 17 datasets, as many held-out domains as the table has."""
    shares_rd = np.genfromtxt(folder / "train_mixture_1m.csv", delimiter=",", skip_header=1)[:, 1:]
    shares_rd /= shares_rd.sum(1, keepdims=True)
    table = folder / "train_pile_loss_1m.csv"
    domains = [name for name in table.read_text().splitlines()[0].split(",") if name.startswith("metric/")]
    losses = np.genfromtxt(table, delimiter=",", names=True, deletechars="", dtype=float)
    names = [str(at) for at in range(shares_rd.shape[1])]
    asked, found = 0, []
    for start in range(0, sets * REGMIX_RUNS, REGMIX_RUNS):
        rows = slice(start, start + REGMIX_RUNS)
        for domain in domains:
            asked += 1
            found += [(domain, jump) for jump in jumps(names, shares_rd[rows], losses[domain][rows])]
    print(f"RegMix, {REGMIX_RUNS} runs of 1 M parameters at a time: {len(found)} jumps found in {asked} questions")
    for domain, jump in found:
        print(f"  {domain}: {jump}")


if __name__ == "__main__":
    main()
