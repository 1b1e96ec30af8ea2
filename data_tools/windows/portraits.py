"""What the documents of each window are like, from the phase that was built: a sample of what will be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.scores.audit_groups import find_groups
from data_tools.scores.audit_source import CorpusSource, read_rows
from data_tools.scores.portrait import QuantileRows, label_columns, portray, verdict_columns, wanted_texts
from megatron_kaiyuan.data.phase import SEQUENCE_MASK

# A shuffled phase begins with a random sample of its documents; so many are looked at.
SAMPLE = 10_000


def portraits(
    source: CorpusSource, score: str, phases: Sequence[Path], shown: int, sample: int = SAMPLE
) -> list[dict[str, Any]]:
    """A portrait of each phase, as `scores.portrait.portray` makes them of the quantiles of a score.

    Args:
        source: the corpus that all phases are of, and of nothing else.
        phases: folders.
        shown: beginnings of documents in each.
        sample: documents of each that are looked at.
    """
    samples = [_first_documents(phase, sample) for phase in phases]
    places = np.unique(np.concatenate(samples))
    table = read_rows(source, places)
    windows = [QuantileRows(np.asarray(np.searchsorted(places, one))) for one in samples]
    wanted = {place for _, place in wanted_texts(table, windows)}
    texts = {(0, place): text for place, text in source.texts(wanted).items()}
    groups = find_groups(table, [source], None)
    labels, verdicts = label_columns(table, groups.by), verdict_columns(table)
    return portray(table, score, windows, texts, (groups.shown, groups.names), labels, verdicts, shown)


def _first_documents(phase: Path, most: int) -> NDArray[np.uint64]:
    """Sequences at the beginning of a phase, each once, in its order."""
    sequences = np.fromfile(phase / "order.bin", "<u8", most) & SEQUENCE_MASK
    _, first = np.unique(sequences, return_index=True)
    return sequences[np.sort(first)]
