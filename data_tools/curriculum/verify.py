"""Checking a phase against its manifest and its corpora."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.data.phase import MANIFEST, Phase

_AGAIN = "build it again with kaiyuan-data curriculum"
# Parts of a phase that are checked at a time for each thread: small enough that all threads end together.
_PARTS_PER_THREAD = 8


@dataclass(frozen=True)
class VerifiedPhase:
    """What a phase holds that was found to be whole."""

    folder: Path
    documents: int
    tokens: int


def is_phase(path: Path) -> bool:
    """Whether a path is a folder with a manifest, as phases are; corpora are prefixes of files."""
    return (path / MANIFEST).is_file()


def verify_phase(folder: Path, fast: bool = False, threads: int = 1) -> VerifiedPhase:
    """Compare a phase with what its manifest says, and with the corpora it was built from.

    Args:
        fast: look at sizes, and at a sample of each corpus, only. Otherwise every byte of the phase and of the
            indexes of its corpora is read: checksums, each block, the length of each sequence. The tokens of the
            corpora are theirs to verify.
        threads: for blocks and rows.

    Raises:
        UserError: the first thing that is wrong.
    """
    phase = Phase(folder, check=None)
    if not fast:
        for name in phase.manifest["files"]:
            phase.check_seals(name)
        phase.compare_fingerprints()
        parts = threads * _PARTS_PER_THREAD
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda part: phase.check(part, parts, lengths=True), range(parts)):
                pass
    return VerifiedPhase(phase.folder, phase.documents, phase.tokens)
