"""What was found: counts a dataset, clusters by size, quarantined ones, and pairs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.keepers import SAMPLES
from data_tools.dedup.scopes import Scope
from data_tools.engines.stage import Record
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.forms import Count, Form, Share

_LISTED = 1000


class _Counts(Form):
    documents: Count
    exact: Count
    near: Count
    quarantined: Count
    removed: Count
    removed_share: Share


class _Cluster(Form):
    documents: Count


class _Side(Form):
    text: str


class _Pair(Form):
    jaccard: Share
    dataset: str
    removed: _Side
    stays: _Side


class ReportForm(Form):
    """A report in a file."""

    datasets: dict[str, _Counts]
    bad_rows: Count
    clusters: dict[str, dict[str, Count]]
    quarantined_clusters: list[_Cluster]
    pairs: list[_Pair]


def make_report(
    scopes: Sequence[Scope], choices: Sequence[Sequence[Record]], samples: Sequence[dict[str, Any]], bad_rows: int
) -> dict[str, Any]:
    """Everything as JSON. It depends on the input and the settings alone."""
    datasets: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[str, int]] = {}
    quarantine: list[dict[str, Any]] = []
    for scope, records in zip(scopes, choices, strict=True):
        for signed in scope.shards:
            if not signed.index:
                empty = {"documents": 0, "exact": 0, "near": 0, "quarantined": 0}
                datasets.setdefault(signed.shard.name, empty)["documents"] += signed.documents
        for record in records:
            for name, counts in record["datasets"].items():
                for key, count in counts.items():
                    datasets[name][key] += count
            quarantine += [{"scope": _scope_name(scope), **entry} for entry in record["quarantine"]]
        sizes[_scope_name(scope)] = _histogram(records)
    for counts in datasets.values():
        counts["removed"] = counts["exact"] + counts["near"]
        counts["removed_share"] = round(counts["removed"] / max(counts["documents"], 1), 6)
    quarantine.sort(key=lambda entry: (-entry["documents"], entry["scope"], entry["cluster"]))
    return {
        "datasets": datasets,
        "bad_rows": bad_rows,
        "clusters": sizes,
        "quarantined_clusters": quarantine[:_LISTED],
        "pairs": list(samples),
    }


def _scope_name(scope: Scope) -> str:
    return "all datasets" if scope.name == "all" else scope.shards[-1].shard.name


def _histogram(records: Sequence[Record]) -> dict[str, int]:
    """Clusters by their number of documents: "2", "3-4", "5-8", ..."""
    longest = max((len(record["sizes"]) for record in records), default=0)
    totals: NDArray[np.int64] = np.zeros(longest, np.int64)
    for record in records:
        totals[: len(record["sizes"])] += np.array(record["sizes"], np.int64)
    names = ["2", *(f"{2**i + 1}-{2 ** (i + 1)}" for i in range(1, longest))]
    return {name: int(count) for name, count in zip(names, totals, strict=False) if count}


def refuse_wipe_out(report: dict[str, Any], max_removed: float, path: Any) -> None:
    """Stop before anything is written where too much of a dataset would go.

    Raises:
        UserError: naming the dataset and the report.
    """
    for name, counts in report["datasets"].items():
        if counts["removed"] > max_removed * counts["documents"]:
            raise UserError(
                f"dataset {name or 'without a name'}: {counts['removed']:,} of {counts['documents']:,} documents "
                f"({counts['removed_share']:.1%}) are duplicates, --max-removed is {max_removed:g}; nothing was "
                f"removed: look at {path}, then raise --max-removed if this is right (what was done so far is kept)"
            )


def report_lines(report: dict[str, Any], threshold: float = 0.0) -> list[str]:
    """The report as text.

    Args:
        threshold: Jaccard index of near-duplicates. An example below it is in the cluster through other documents.
    """
    lines = []
    for name, counts in report["datasets"].items():
        quarantined = f", {counts['quarantined']:,} quarantined" if counts["quarantined"] else ""
        lines.append(
            f"{name or 'documents'}: {counts['documents'] - counts['removed']:,} of {counts['documents']:,} stay; "
            f"removed {counts['removed_share']:.1%}: {counts['exact']:,} exact, {counts['near']:,} near{quarantined}"
        )
    if report["bad_rows"]:
        lines.append(f"left out: {report['bad_rows']:,} bad rows; manifest.json has the reasons")
    for name, sizes in report["clusters"].items():
        if sizes:
            found = ", ".join(f"{size}: {count:,}" for size, count in sizes.items())
            lines.append(f"clusters{f' of {name}' if name else ''} by documents: {found}")
    if report["quarantined_clusters"]:
        largest = report["quarantined_clusters"][0]["documents"]
        lines.append(
            f"quarantined: {len(report['quarantined_clusters']):,} clusters, the largest of {largest:,} documents; "
            "they lose their exact duplicates only (see --max-cluster and report.json)"
        )
    for pair in report["pairs"][:SAMPLES]:
        where = f" in {pair['dataset']}" if pair["dataset"] else ""
        through = " (below the threshold: joined through other documents)" if pair["jaccard"] < threshold else ""
        lines.append(f"example, Jaccard {pair['jaccard']:.3f}{through}{where}:")
        lines += [f"  {side}: {' '.join(pair[side]['text'].split())}" for side in ("removed", "stays")]
    return lines
