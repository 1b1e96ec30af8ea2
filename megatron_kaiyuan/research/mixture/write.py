"""The answer as files: `order.yaml` for the builder, with reasons beside the numbers, and `mixture.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatron_kaiyuan.config import one_line
from megatron_kaiyuan.files import write_json, write_text
from megatron_kaiyuan.outputs import Output
from megatron_kaiyuan.research.mixture.answer import MixtureAnswer
from megatron_kaiyuan.research.mixture.recipe import MixRecipe

FORMAT = "kaiyuan-mixture"
ORDER = "order.yaml"
ANSWER = "mixture.json"
# A dataset with less of a mixture than this is left out of the recipe.
_LEAST_SHARE = 1e-3
_HEAD = re.compile(r"# Written by kaiyuan mix, [0-9a-f]{32}\n")


def write_answer(answer: MixtureAnswer, recipe: MixRecipe, folder: Path) -> Path:
    """Write both files; the order recipe's path.

    Raises:
        UserError: an earlier order.yaml was edited since.
    """
    refuse_edited(folder)
    write_json(folder / ANSWER, as_json(answer, recipe))
    text = order_text(answer, recipe)
    write_text(folder / ORDER, f"# Written by kaiyuan mix, {_digest(text)}\n{text}")
    return folder / ORDER


def refuse_edited(folder: Path) -> None:
    """Refuse to replace an order.yaml that is not as `write_answer` left it.

    Raises:
        UserError: it was edited, or is something else.
    """
    path = folder / ORDER
    if path.exists():
        head, _, text = path.read_text(errors="replace").partition("\n")
        if not _HEAD.fullmatch(f"{head}\n") or head.rpartition(" ")[2] != _digest(text):
            raise Output(path, "an order recipe of kaiyuan mix", kind="file").in_the_way(
                path, "was edited since kaiyuan mix wrote it"
            )


def order_text(answer: MixtureAnswer, recipe: MixRecipe) -> str:
    """A phase of the best shares, with why in comments."""
    best, (gain, low, high) = answer.best, answer.gain
    weights = ", ".join(f"{name} {weight:g}" for name, weight in recipe.weights.items())
    lines = [
        f"# Shares for {recipe.target_tokens:,} tokens, from {len(answer.shares_rd)} runs of {recipe.tokens:,} tokens.",
        f"# Objective: bits per byte of held-out text, weighted {weights}.",
        f"# The law predicts {best.objective:.4f} for this mixture: {gain:.4f} below the corpora's own shares",
        f"# ({recipe.level:.0%} of the resampled fits: {low:.4f} to {high:.4f}).",
        *([f"# {confirmed_words(answer)}"] if len(answer.confirmed_s) else []),
        *(f"# Warning: {warning}" for warning in answer.warnings),
        "# Relative prefixes start where the builder is run.",
        "corpora:",
        *(f"  {one_line(name)}: {one_line(str(recipe.corpora[name]))}" for name in answer.names),
        "",
        "phases:",
        "  - name: mixture",
        "    order: shuffle",
        f"    tokens: {recipe.target_tokens}",
        f"    max_repeat: {max(recipe.max_repeat, float(np.ceil(answer.epochs_d.max() * 100) / 100)):g}",
        "    datasets:",
    ]
    for name, share, least, most, read in zip(
        answer.names, _rounded(best.shares_d), best.low_d, best.high_d, answer.epochs_d, strict=True
    ):
        interval = f"{least:.3f} to {most:.3f} are as good for what the runs can tell"
        if share:
            lines += [
                f"      # {interval}; read {read:.2f} times",
                f"      - {{corpus: {one_line(name)}, share: {share:g}}}",
            ]
        else:
            lines.append(f"      # {name} is left out: {interval}")
    return "\n".join(lines) + "\n"


def confirmed_words(answer: MixtureAnswer) -> str:
    """What training on the best mixture and on the corpora's own shares has shown."""
    pairs = ", ".join(f"{value:+.4f}" for value in answer.confirmed_s)
    measured = f"trained on both, own shares less best mixture: {answer.confirmed_s.mean():+.4f} bits/byte ({pairs})"
    return measured if answer.confirmed_s.mean() > 0 else f"{measured}: not better, keep the corpora's own shares"


def as_json(answer: MixtureAnswer, recipe: MixRecipe) -> dict[str, Any]:
    """Everything that was measured and fitted."""
    return {
        "format": FORMAT,
        "recipe": recipe.model_dump(mode="json"),
        "corpora": dict(zip(answer.names, answer.tokens_d.tolist(), strict=True)),
        "runs": [
            {"shares": shares, "bits_per_byte": {domain: float(values[at]) for domain, values in answer.losses.items()}}
            for at, shares in enumerate(answer.shares_rd.tolist())
        ],
        "laws": {
            domain: {
                "floor": fitted.law.floor,
                "intercept": fitted.law.intercept,
                "slopes": dict(zip([*answer.names, "repeated"], fitted.law.slopes_d.tolist(), strict=True)),
                "penalty": fitted.law.penalty,
                "leave_out_error": fitted.leave_out_error,
            }
            for domain, fitted in answer.fitted.items()
        },
        "best": {
            "shares": dict(zip(answer.names, answer.best.shares_d.tolist(), strict=True)),
            "objective": answer.best.objective,
            "as_good": {
                name: [float(low), float(high)]
                for name, low, high in zip(answer.names, answer.best.low_d, answer.best.high_d, strict=True)
            },
            "epochs": dict(zip(answer.names, answer.epochs_d.tolist(), strict=True)),
            "gain_over_own_shares": dict(zip(("predicted", "low", "high"), answer.gain, strict=True)),
        },
        "confirmed": answer.confirmed_s.tolist(),
        "warnings": answer.warnings,
    }


def _rounded(shares_d: np.ndarray) -> list[float]:
    """Shares of whole ten-thousandths that sum to 1; small ones are 0."""
    kept_d = np.where(shares_d < _LEAST_SHARE, 0, shares_d)
    parts_d = np.round(kept_d / kept_d.sum() * 10_000).astype(int)
    parts_d[parts_d.argmax()] += 10_000 - parts_d.sum()
    return [part / 10_000 for part in parts_d.tolist()]


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())
