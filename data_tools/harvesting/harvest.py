"""Collecting real documents that this machine already has into JSON lines, with a held-out part of its own files."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import xxhash

from data_tools.harvesting.harvest_sources import DOMAINS, SourceFile, all_code_files
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.outputs import Output, claim, identity_of, recorded_folder, write_record
from megatron_kaiyuan.progress import counted

SHORTEST_TEXT = 200
_FORMAT = "kaiyuan-harvest"
_SPLITS = ("train", "heldout")


@dataclass
class Harvest:
    """The documents of one domain.

    Attributes:
        documents: rows of each split.
        size: UTF-8 bytes of text of each split.
        duplicates: texts that were dropped because the same text came before, in this or an earlier domain.
    """

    domain: str
    documents: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in _SPLITS})
    size: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SPLITS, 0))
    duplicates: int = 0

    def __str__(self) -> str:
        parts = [f"{len(self.documents[s]):,} documents and {self.size[s] / 1e6:.2f} MB {s}" for s in _SPLITS]
        return f"{self.domain}: {', '.join(parts)}; {self.duplicates:,} duplicates dropped"


def harvest(
    folder: Path,
    megabytes: float = 3.0,
    held_out: float = 0.05,
    seed: int = 1234,
    domains: Iterable[str] = DOMAINS,
    force: bool = False,
    packages: bool = False,
) -> Iterator[Harvest]:
    """Yield each domain when it is collected; at the end `folder` appears, with `{domain}.train.jsonl` and
    `{domain}.heldout.jsonl`.

    A source file is held out as a whole when a seeded hash of its name falls below `held_out`, so that no file is in
    both splits, not even through two domains. Files are taken in the order of that hash, from all packages in turn.
    The result depends on the installed packages, the arguments and nothing else.

    Args:
        folder: a new folder, or an earlier harvest with the same arguments and packages.
        megabytes: 10^6 bytes of text for `train`; `heldout` gets `held_out` times as much.
        force: another earlier harvest may be replaced.
        packages: code is also from the sources of installed packages, ten times as much.

    Raises:
        UserError: an argument is out of range, or `folder` holds something else.
    """
    if megabytes <= 0:
        raise UserError(f"--megabytes {megabytes}: must be above 0")
    if not 0 < held_out < 1:
        raise UserError(f"--held-out {held_out}: must be above 0 and below 1")
    limits = {"train": int(megabytes * 1e6), "heldout": int(megabytes * 1e6 * held_out)}
    seen: set[bytes] = set()
    domains = list(domains)
    settings = [megabytes, held_out, seed, domains, *(["packages"] if packages else [])]
    identity = identity_of("harvest", *settings, sys.version, _packages())
    place = Output(folder, "a harvest of text", "folder")
    with (
        claim(place, identity, recorded_folder(_FORMAT), force=force),
        atomic_path(place.path, replace_folder=True) as new,
    ):
        new.mkdir()
        for domain in domains:
            files = all_code_files() if packages and domain == "code" else DOMAINS[domain]()
            result = _collect(domain, files, limits, held_out, seed, seen)
            for split in _SPLITS:
                _write(new / f"{domain}.{split}.jsonl", result.documents[split])
            yield result
        write_record(new, _FORMAT, identity)


def _packages() -> list[list[str]]:
    return sorted([package.name, package.version] for package in importlib.metadata.distributions())


def _collect(
    domain: str, files: Iterable[SourceFile], limits: dict[str, int], held_out: float, seed: int, seen: set[bytes]
) -> Harvest:
    result = Harvest(domain)
    for source in counted(_in_turn(files, seed), f"harvest {domain}", "files"):
        split = "heldout" if _hash(source.name, seed) < held_out * 2**64 else "train"
        if result.size[split] < limits[split]:
            _add_file(result, split, source, limits[split], seen)
        elif all(result.size[other] >= limits[other] for other in _SPLITS):
            break
    _never_without_held_out(result)
    return result


def _add_file(result: Harvest, split: str, source: SourceFile, limit: int, seen: set[bytes]) -> None:
    for place, text in source.read(source.path):
        if len(text) < SHORTEST_TEXT:
            continue
        # A docstring may hold half a surrogate pair, which no UTF-8 file can.
        encoded = text.encode("utf-8", errors="replace")
        digest = xxhash.xxh3_128_digest(encoded)
        if digest in seen:
            result.duplicates += 1
            continue
        if result.size[split] >= limit:
            return
        seen.add(digest)
        result.size[split] += len(encoded)
        name = f"{source.name}:{place}" if place else source.name
        row = {"text": encoded.decode(), "domain": result.domain, "source": name}
        result.documents[split].append(row)


def _never_without_held_out(result: Harvest) -> None:
    """In a domain of few files the hash may hold out none; then the last file is, or there is nothing to evaluate."""
    train = result.documents["train"]
    files = [row["source"].partition(":")[0] for row in train]
    if result.documents["heldout"] or len(set(files)) < 2:
        return
    cut = files.index(files[-1])
    result.documents = {"train": train[:cut], "heldout": train[cut:]}
    for split, rows in result.documents.items():
        result.size[split] = sum(len(row["text"].encode()) for row in rows)


def _in_turn(files: Iterable[SourceFile], seed: int) -> Iterator[SourceFile]:
    """One file of each group, then the second of each, each group in the order of the seeded hash."""
    groups: dict[str, list[SourceFile]] = defaultdict(list)
    for file in files:
        groups[file.group].append(file)
    ordered = [sorted(groups[name], key=lambda file: _hash(file.name, seed)) for name in sorted(groups)]
    for row in zip_longest(*ordered):
        yield from (file for file in row if file is not None)


def _hash(name: str, seed: int) -> int:
    return int(xxhash.xxh3_64_intdigest(name.encode("utf-8", errors="replace"), seed=seed))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines; without rows, no file."""
    if rows:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
