"""`kaiyuan mix`: a study in its folder, and its answer in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kaiyuan.data.indexed import idx_path
from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.files import read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import Form, require_form
from megatron_kaiyuan.outputs import Output, claim, files_identity, identity_of
from megatron_kaiyuan.research.queue.slurm import Array

if TYPE_CHECKING:
    from megatron_kaiyuan.research.mixture.answer import MixtureAnswer
    from megatron_kaiyuan.research.mixture.recipe import MixRecipe

FORMAT = "kaiyuan-mix"
RECORD = "study.json"
# Fields that may change without making the runs others: how many there are, and what is asked of them.
_ASKED = {"runs", "objective", "smallest", "confirm", "level"}


class _Record(Form):
    identity: str


def mix(
    path: Path,
    overrides: Sequence[str],
    output: Path,
    slots: int | None = None,
    array: Array | None = None,
    force: bool = False,
) -> str:
    """Run a study to its answer, and write it to the folder; what to print.

    Args:
        slots, array: see `run_all`.

    Raises:
        UserError: a mistake in the recipe, a missing corpus, something else in the folder, or a run that failed.
    """
    require("scipy", extra="research", purpose="the law of mixtures")
    from megatron_kaiyuan.research.mixture.recipe import load_mix
    from megatron_kaiyuan.research.mixture.study import study
    from megatron_kaiyuan.research.mixture.write import refuse_edited, write_answer

    recipe = load_mix(path, overrides)
    identity = _identity(recipe)
    with claim(Output(output, "a study of kaiyuan mix"), identity, _earlier, force=force):
        refuse_edited(output)
        write_sealed_json(output / RECORD, {"format": FORMAT, "identity": identity})
        found = study(recipe, output, slots, array)
        order = write_answer(found, recipe, output)
    return _words(found, recipe, order)


def plan(path: Path, overrides: Sequence[str]) -> str:
    """What a study would train: its mixtures, and how often each corpus would be read."""
    require("scipy", extra="research", purpose="the law of mixtures")
    from megatron_kaiyuan.research.mixture.exposure import epochs
    from megatron_kaiyuan.research.mixture.recipe import load_mix
    from megatron_kaiyuan.research.mixture.study import corpus_tokens, drawn, mix_tasks

    recipe = load_mix(path, overrides)
    names, tokens_d = corpus_tokens(recipe)
    shares_rd = drawn(recipe, names, tokens_d)
    read_rd = epochs(shares_rd, tokens_d, recipe.target_tokens)
    width = max(map(len, names))
    lines = [
        f"mix: {recipe.runs} runs of {recipe.tokens:,} tokens, {recipe.runs * recipe.tokens:,} in all, for "
        f"{recipe.target_tokens:,}"
    ]
    for at, name in enumerate(names):
        shares_r = shares_rd[:, at]
        lines.append(
            f"  {name:<{width}} {int(tokens_d[at]):,} tokens, shares {shares_r.min():.3f} to {shares_r.max():.3f}, "
            f"read {read_rd[:, at].max():.2f} times at most"
        )
    lines += [f"  {line}" for line in mix_tasks(recipe).describe()]
    return "\n".join(lines)


def _identity(recipe: MixRecipe) -> str:
    fields = recipe.model_dump(mode="json", exclude=_ASKED)
    corpora = [*recipe.corpora.values(), *recipe.held_out.values()]
    missing = [path for path in [recipe.recipe, *map(idx_path, corpora)] if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]}: not found; mix.yaml names it")
    return identity_of("mix", fields, files_identity([recipe.recipe, *map(idx_path, corpora)]))


def _earlier(output: Output) -> str | None:
    folder = output.path
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        record = read_sealed_json(folder / RECORD, "record of a study")
    except UserError:
        record = {}
    if record.get("format") != FORMAT:
        raise output.in_the_way(folder)
    return require_form(folder / RECORD, record, _Record, "move it away, or name another folder").identity


def _words(answer: MixtureAnswer, recipe: MixRecipe, order: Path) -> str:
    from megatron_kaiyuan.research.mixture.write import confirmed_words

    best, (gain, low, high) = answer.best, answer.gain
    width = max(map(len, answer.names))
    lines = [
        f"mix: {len(answer.shares_rd)} runs; objective {best.objective:.4f} bits/byte, {gain:.4f} below the corpora's "
        f"own shares ({recipe.level:.0%} interval {low:.4f} to {high:.4f})"
    ]
    if low <= 0:
        lines.append(
            "  the runs cannot tell this mixture from the corpora's own shares: take those, or train more runs"
        )
    for name, share, least, most, own, read in zip(
        answer.names,
        best.shares_d,
        best.low_d,
        best.high_d,
        answer.natural_d,
        answer.epochs_d,
        strict=True,
    ):
        lines.append(
            f"  {name:<{width}} {share:.3f} (as good: {least:.3f} to {most:.3f}; own share {own:.3f}), "
            f"read {read:.2f} times"
        )
    lines += [
        f"  {domain}: leave-out error {fitted.leave_out_error:.4f} bits/byte"
        for domain, fitted in answer.fitted.items()
    ]
    if len(answer.confirmed_s):
        lines.append(f"  {confirmed_words(answer)}")
    lines += [f"  warning: {warning}" for warning in answer.warnings]
    return "\n".join([*lines, f"  small runs rank what small networks learn; written: {order}"])
