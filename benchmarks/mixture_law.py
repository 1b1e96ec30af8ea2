"""The mixture law against ridge regression, on the public proxy runs of RegMix, and whether its intervals hold.

    python -m benchmarks.mixture_law FOLDER

FOLDER: the six tables of RegMix's repository (MIT licence, github.com/sail-sg/regmix, data/): 512 runs of 1 M
parameters on mixtures of 17 datasets, 256 of 60 M and 64 of 1 B on others. A law is fitted on some of the small runs,
and ranks the mixtures of the larger ones by the loss it predicts; Spearman's rank correlation with their true losses on
Pile-CC is shown, of the first runs in the file and of others drawn at random. Intervals are checked on the small runs
that were not taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from megatron_kaiyuan.research.mixture.law import Matrix, fit
from megatron_kaiyuan.research.mixture.uncertainty import fit_domains

TARGET = "metric/the_pile_pile_cc_val_loss"
SIZES = (32, 64, 128, 256, 512)
DRAWS = 20
LEVEL = 0.9


def read(folder: Path, mixtures: str, losses: str) -> tuple[Matrix, Matrix]:
    """Shares [r, d] and losses on the target [r]."""
    shares_rd = np.genfromtxt(folder / mixtures, delimiter=",", skip_header=1)[:, 1:]
    names = (folder / losses).read_text().splitlines()[0].split(",")
    losses_r = np.genfromtxt(folder / losses, delimiter=",", skip_header=1)[:, names.index(TARGET)]
    return shares_rd / shares_rd.sum(1, keepdims=True), losses_r


def ridge(shares_rd: Matrix, losses_r: Matrix) -> Callable[[Matrix], Matrix]:
    """A line with a penalty chosen by the error of runs left out one at a time, in closed form."""
    mean_d, mean = shares_rd.mean(0), losses_r.mean()
    centred_rd = shares_rd - mean_d
    best: tuple[float, Matrix] | None = None
    for penalty in np.logspace(-4, 2, 25):
        inverse = np.linalg.inv(centred_rd.T @ centred_rd + penalty * np.eye(len(mean_d)))
        slopes_d = inverse @ centred_rd.T @ (losses_r - mean)
        leverage_r = np.einsum("rd,de,re->r", centred_rd, inverse, centred_rd) + 1 / len(losses_r)
        error = float(np.mean(((losses_r - mean - centred_rd @ slopes_d) / (1 - leverage_r)) ** 2))
        if best is None or error < best[0]:
            best = error, slopes_d
    assert best is not None
    return lambda others_rd: mean + (others_rd - mean_d) @ best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    shares_rd, losses_r = read(folder, "train_mixture_1m.csv", "train_pile_loss_1m.csv")
    targets = {size: read(folder, f"test_mixture_{size}.csv", f"test_pile_loss_{size}.csv") for size in ("60m", "1B")}
    print(
        f"{len(losses_r)} runs of 1 M, {shares_rd.shape[1]} datasets; targets: Pile-CC of "
        + ", ".join(f"{len(values)} runs of {size}" for size, (_, values) in targets.items())
    )
    print("rank correlation: of the first runs of the file; median and lowest of 20 random sets; ridge: median")
    for runs in SIZES:
        fits, ridges, began = [], [], time.perf_counter()
        for draw in range(1 if runs == len(losses_r) else 1 + DRAWS):
            rows = np.random.default_rng(draw).permutation(len(losses_r))[:runs] if draw else np.arange(runs)
            law, line = fit(shares_rd[rows], losses_r[rows]), ridge(shares_rd[rows], losses_r[rows])
            fits.append([spearmanr(law(x), y).statistic for x, y in targets.values()])
            ridges.append([spearmanr(line(x), y).statistic for x, y in targets.values()])
        seconds = (time.perf_counter() - began) / len(fits)
        drawn = np.array(fits[1:] or fits)
        columns = [
            f"{size} {fits[0][at]:.3f}; {np.median(drawn[:, at]):.3f}, {drawn[:, at].min():.3f}; "
            f"ridge {np.median(np.array(ridges)[:, at]):.3f}"
            for at, size in enumerate(targets)
        ]
        print(f"{runs:4} runs   " + "   |   ".join(columns) + f"   ({seconds:.2f} s a fit)", flush=True)
    print(f"intervals of {LEVEL:.0%} for a further run's loss: part of the runs not taken that they hold, over 10 sets")
    for runs in SIZES[:-1]:
        held, widths = [], []
        for draw in range(10):
            order = np.random.default_rng(draw).permutation(len(losses_r))
            taken, rest = order[:runs], order[runs:]
            fitted = fit_domains(shares_rd[taken], {TARGET: losses_r[taken]}, seed=draw)[TARGET]
            low_r, high_r = fitted.interval(shares_rd[rest], LEVEL)
            held.append(np.mean((low_r <= losses_r[rest]) & (losses_r[rest] <= high_r)))
            widths.append(np.median(high_r - low_r))
        print(
            f"{runs:4} runs   mean {np.mean(held):.3f}, lowest {min(held):.3f}; "
            f"median width {np.mean(widths):.3f} nats",
            flush=True,
        )


if __name__ == "__main__":
    main()
