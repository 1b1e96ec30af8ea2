"""Several averages of a run's checkpoints, measured on the same held-out corpora: `kaiyuan averages`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kaiyuan.checkpoint.average import Selection, select, sources_of, write_average
from megatron_kaiyuan.checkpoint.find import Found, find_checkpoint
from megatron_kaiyuan.checkpoint.load import require_whole
from megatron_kaiyuan.checkpoint.weighting import Source, Weighting
from megatron_kaiyuan.data.indexed import IndexedCorpus, idx_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.heldout import held_out_loss, open_corpora
from megatron_kaiyuan.evaluate.source import ModelSource, Settings, open_source
from megatron_kaiyuan.files import temporary_beside, write_json
from megatron_kaiyuan.outputs import Output, check, claim, files_identity, identity_of, marked_json
from megatron_kaiyuan.pages.page import earlier_page, page_identity, page_output, render, write_page
from megatron_kaiyuan.pages.plotting import COLOURS, Figure, render_plot
from megatron_kaiyuan.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = "kaiyuan-averages"
GENERATOR = "kaiyuan averages"
_NAMES = {"equal": "equal mean", "ema": "EMA", "one_minus_sqrt": "1-sqrt"}


@dataclass(frozen=True)
class Wanted:
    """What is compared.

    Attributes:
        weightings: kinds of averages, by distinct names.
        lasts: how many of the newest scheduled checkpoints each of them takes.
        stride: steps between them; None: every scheduled one.
        held_out: corpus prefixes, one for each domain.
        seq_length: context in tokens; None: as in training.
        token_limit: predicted tokens at most; None: all.
    """

    weightings: Sequence[Weighting]
    lasts: Sequence[int]
    held_out: Sequence[Path]
    stride: int | None = None
    seq_length: int | None = None
    token_limit: int | None = 100_000


@dataclass(frozen=True)
class Candidate:
    """One average: its kind, the number of its checkpoints, and each one with its weight."""

    kind: str
    last: int
    weighting: Weighting
    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    @property
    def made_from(self) -> list[Any]:
        """Checkpoints and weights: two candidates that have them in common are one network."""
        total = math.fsum(self.weights)
        return [(one.seal, share / total) for one, share in zip(self.sources, self.weights, strict=True) if share]


def compare_averages(run_dir: Path, wanted: Wanted, output: Path, device: Any = "cpu", force: bool = False) -> str:
    """Measure averages, the newest of their checkpoints, and its kept EMA where there is one; write a page and JSON.

    One process, process groups initialised. One average at a time lies beside `output` while it is measured.

    Args:
        output: the page; the JSON file beside it has its name.
        force: a comparison of other checkpoints, kinds or corpora may be replaced.

    Returns:
        A one-line summary.

    Raises:
        UserError: there are fewer checkpoints, one of them or a corpus is damaged, or another file is in the way.
    """
    if output.suffix == ".json":
        raise UserError(f"--output {output}: is the name of the JSON file; name the page, as {output.stem}.html")
    corpora = open_corpora(wanted.held_out)
    candidates = list(_candidates(run_dir, wanted))
    newest = candidates[0].sources[-1]
    identity = identity_of(
        GENERATOR,
        [[one.kind, one.last, one.made_from] for one in candidates],
        files_identity(map(idx_path, wanted.held_out)),
        [wanted.seq_length, wanted.token_limit],
    )
    place = Output(output.with_suffix(".json"), "a result of kaiyuan averages", kind="file")
    with claim(place, identity, marked_json(FORMAT), force=force), Progress("averages", len(candidates)) as progress:
        # Before hours of measuring.
        check(page_output(output), page_identity(run_dir, output), earlier_page(GENERATOR), force)
        for folder in {source.folder for one in candidates for source in one.sources}:
            require_whole(folder)
        rows = []
        known: dict[str, dict[str, Any]] = {}
        for one in candidates:
            key = identity_of(one.made_from)
            if key not in known:
                known[key] = _measure_average(one, run_dir, output, wanted, corpora, device)
            rows.append(_row(one, known[key]))
            progress.advance()
        beside = {"newest": _measure(find_checkpoint(newest.folder), wanted, corpora, device), "kept_ema": None}
        if _keeps_ema(newest):
            beside["kept_ema"] = _measure(find_checkpoint(newest.folder, None, "ema"), wanted, corpora, device)
        result = {"run": str(run_dir), "step": newest.step, **beside, "averages": rows}
        write_json(place.path, {"format": FORMAT, "identity": identity, **result})
        write_page(output, _page(run_dir, output, result), page_identity(run_dir, output), GENERATOR, force)
    return f"averages: {_best(result)}; {output}"


def _candidates(run_dir: Path, wanted: Wanted) -> Iterator[Candidate]:
    for weighting in wanted.weightings:
        for last in wanted.lasts:
            sources = sources_of(run_dir, select(run_dir, Selection(last, wanted.stride)))
            yield Candidate(weighting.kind, last, weighting, tuple(sources), tuple(weighting.weights(sources)))


def _measure_average(
    one: Candidate, run_dir: Path, output: Path, wanted: Wanted, corpora: dict[str, IndexedCorpus], device: Any
) -> dict[str, Any]:
    """Measure an average that is written for this, and removed."""
    if len(one.made_from) == 1:
        return _measure(find_checkpoint(one.sources[-1].folder), wanted, corpora, device)
    # Of a name that the next call of the command removes, if this one is killed.
    folder = temporary_beside(output)
    try:
        write_average(one.sources, one.weights, one.weighting, folder, verified=True)
        return _measure(Found(folder, run_dir, f"{one.kind} of {one.last}"), wanted, corpora, device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(found: Found, wanted: Wanted, corpora: dict[str, IndexedCorpus], device: Any) -> dict[str, Any]:
    model = open_source(ModelSource(found.folder, found), None, corpora, Settings(device))
    context = wanted.seq_length or model.context
    if context > model.longest:
        raise UserError(f"seq_length {context}: {found.folder} admits {model.longest} tokens at most")
    return held_out_loss(model.predictor, corpora, context, wanted.token_limit)


def _keeps_ema(source: Source) -> bool:
    try:
        find_checkpoint(source.folder, None, "ema")
    except UserError:
        return False
    return True


def _row(one: Candidate, held_out: dict[str, Any]) -> dict[str, Any]:
    about = one.weighting.as_json(one.sources, one.weights)
    return {"kind": one.kind, "last": one.last, **about, "held_out": held_out}


def _best(result: dict[str, Any]) -> str:
    losses = {f"{_NAMES[row['kind']]} of the last {row['last']}": row["held_out"] for row in result["averages"]}
    losses = {f"step {result['step']} alone": result["newest"], **losses}
    losses |= {"kept EMA": result["kept_ema"]} if result["kept_ema"] else {}
    best = min(losses, key=lambda name: losses[name]["nats_per_token"])
    found = f"lowest held-out loss {losses[best]['nats_per_token']:.4f} nats per token: {best}"
    newest = result["newest"]
    return found if losses[best] is newest else f"{found}; step {result['step']} alone {newest['nats_per_token']:.4f}"


def _page(run_dir: Path, output: Path, result: dict[str, Any]) -> str:
    domains = list(result["newest"]["domains"])
    figures = [_figure(result, None)]
    figures += [_figure(result, name) for name in domains] if len(domains) > 1 else []
    rows = [{"name": f"step {result['step']}", "last": None, "held_out": result["newest"]}]
    if result["kept_ema"]:
        rows.append({"name": f"EMA kept at step {result['step']}", "last": None, "held_out": result["kept_ema"]})
    rows += [{**row, "name": _NAMES[row["kind"]]} for row in result["averages"]]
    return render(
        "averages.html",
        __package__,
        name=run_dir.name,
        generator=GENERATOR,
        identity=page_identity(run_dir, output),
        summary=_best(result),
        figures=figures,
        domains=domains,
        rows=rows,
        weights=[(_NAMES[row["kind"]], row["last"], row["weights"]) for row in result["averages"] if row["last"] > 1],
    )


def _figure(result: dict[str, Any], domain: str | None) -> Figure:
    """Held-out loss against the number of checkpoints, a line for each kind."""

    def loss(held_out: dict[str, Any]) -> float:
        return float((held_out if domain is None else held_out["domains"][domain])["nats_per_token"])

    def draw(axes: Axes) -> None:
        for colour, kind in zip(COLOURS, dict.fromkeys(row["kind"] for row in result["averages"]), strict=False):
            points = sorted((row["last"], loss(row["held_out"])) for row in result["averages"] if row["kind"] == kind)
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=_NAMES[kind])
        axes.axhline(loss(result["newest"]), color="#666666", linestyle="--", label=f"step {result['step']}")
        if result["kept_ema"]:
            axes.axhline(loss(result["kept_ema"]), color=COLOURS[3], linestyle=":", label="kept EMA")
        axes.set_xticks(sorted({row["last"] for row in result["averages"]}))
        axes.set_xlabel("checkpoints in the average")
        axes.set_ylabel("nats per token")
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))

    what = "all corpora" if domain is None else domain
    caption = (
        f"Held-out loss on {what}, against how many of the newest checkpoints are averaged. Dashed: the newest alone."
    )
    return Figure(f"Held-out loss, {what}", caption, render_plot(draw), wide=False)
