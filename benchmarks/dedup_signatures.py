"""Signatures a second and core against named peers, and what bands find against exact all-pairs Jaccard, in one run.

    pip install --no-deps datasketch rensa gaoya
    python -m benchmarks.dedup_signatures --kaiyuan CHECKOUT

Texts are what this machine keeps: docstrings, Python's language reference and descriptions of packages in English,
translations in gettext catalogues in Chinese, cut to documents of 3.4 kB. Rates are of CPU time of this process, the
best of the rounds; texts are in Arrow memory before the clock starts for ours, in a list of strings for the others.
CHECKOUT: a clone of github.com/thu-pacman/Kaiyuan-Spark, whose functions are called without Spark; its bands must equal
those of the preset. What is not installed is left out.

The second half plants near-copies at known edit rates among the English documents. The truth is all pairs whose sets of
word 5-grams have a Jaccard index of .7 or more, from a sparse product over all documents.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from benchmarks.dedup_peers import installed_peers, python_shingles, released_bands, released_peer
from benchmarks.dedup_texts import boilerplate_documents, chinese_documents, english_documents, near_copies
from data_tools import _dedup
from data_tools.dedup.signatures import Recipe, kaiyuan_preset, text_memory

Pairs = set[tuple[int, int]]


def processor() -> str:
    """The processor's name, and the instruction sets that the extension uses here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    families = [line.partition(":")[2].strip() for line in lines if line.startswith("cpu family")]
    name = f"{names[0]} (family {families[0]})" if names and families else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {', '.join(_dedup.vector_names())}"


def rate(sign: Callable[[], object], documents: int, rounds: int) -> float:
    """Documents a second of CPU time, the best of the rounds."""
    best = 0.0
    for _ in range(rounds):
        began = time.process_time()
        sign()
        best = max(best, documents / (time.process_time() - began))
    return best


def print_rate(name: str, found: float, ours: float, bytes_each: float) -> None:
    ratio = f"{ours / found:8.1f}" if found < ours else f"{ours / found:8.2f}"
    print(f"  {name:<44}{found:>10,.0f} docs/s {found * bytes_each / 1e6:>7.1f} MB/s {ratio}", flush=True)


def our_rates(texts: list[str], rounds: int) -> Iterator[tuple[str, float]]:
    """Of both recipes, with each instruction set that is here, the widest first."""
    memory = text_memory(pa.array(texts, pa.large_string()))
    for name, recipe in (("default recipe", Recipe()), ("preset kaiyuan", kaiyuan_preset())):
        signer = recipe.signer()
        signer.sign(*memory)
        for vectors in reversed(_dedup.vector_names()):
            _dedup.use_vectors(vectors)
            yield f"{name}, {vectors}", rate(lambda: signer.sign(*memory), len(texts), rounds)  # noqa: B023
        _dedup.use_vectors(_dedup.vector_names()[-1])


def compare_speed(language: str, texts: list[str], peer_documents: int, rounds: int, kaiyuan: Path | None) -> None:
    bytes_each = sum(len(text.encode()) for text in texts) / len(texts)
    print(
        f"{language}: {len(texts):,} documents of {bytes_each:,.0f} bytes; the last column is the default recipe's lead"
    )
    ours = dict(our_rates(texts, rounds))
    fastest = next(iter(ours.values()))
    for name, found in ours.items():
        print_rate(name, found, fastest, bytes_each)
    some = texts[:peer_documents]
    peers = [*installed_peers(), *([released_peer(kaiyuan)] if kaiyuan else [])]
    for peer in peers:
        documents: list[Any] = [python_shingles(text) for text in some] if peer.takes_shingles else some
        print_rate(peer.name, rate(lambda: peer.sign(documents), len(some), rounds), fastest, bytes_each)  # noqa: B023


def require_released_bands(texts: list[str], kaiyuan: Path) -> None:
    """End the benchmark when the preset's bands are not those of the released code."""
    released, recipe = released_bands(kaiyuan), kaiyuan_preset()
    signatures, shingles, _ = recipe.signer().sign(*text_memory(pa.array(texts, pa.large_string())))
    for text, signature, count in zip(texts, signatures, shingles.tolist(), strict=True):
        own = signature.astype(">u8").tobytes() if count else b""
        if own != b"".join(band for _, band, _ in released(text)):
            raise SystemExit(f"the preset's bands differ from the released ones: {text[:80]!a}")
    print(f"the preset's bands are those of the released code on {len(texts):,} documents")


def all_pairs(texts: list[str], threshold: float) -> tuple[Pairs, NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of at least this exact Jaccard index; and of all pairs that share a shingle the pair and its index."""
    offsets, hashes = Recipe().signer().shingle_sets(*text_memory(pa.array(texts, pa.large_string())))
    columns = np.unique(hashes, return_inverse=True)[1]
    incidence = csr_array((np.ones(len(hashes), np.int32), columns, offsets))
    shared = (incidence @ incidence.T).tocoo()
    a, b = shared.coords
    upper = a < b
    a, b, both = a[upper], b[upper], shared.data[upper]
    sizes = np.diff(offsets)
    similarity = both / (sizes[a] + sizes[b] - both)
    pairs = np.stack([a, b], axis=1).astype(np.int64)
    return {*map(tuple, pairs[similarity >= threshold].tolist())}, pairs, similarity


def candidates(texts: list[str], recipe: Recipe, folder: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The pairs that the recipe's bands propose, by the extension's files, and their exact Jaccard index."""
    signer = recipe.signer()
    memory = text_memory(pa.array(texts, pa.large_string()))
    signatures, shingles, _ = signer.sign(*memory)
    rows: NDArray[np.uint32] = np.flatnonzero(shingles).astype(np.uint32)
    outputs = []
    for band, keys in enumerate(_dedup.band_keys(signatures, recipe.bands, recipe.rows)):
        path, output = folder / "run", os.fsencode(folder / f"pairs{band}")
        with path.open("wb") as file:
            for column in _dedup.sort_run(keys[rows], rows):
                column.tofile(file)
        _dedup.group_pairs([(os.fsencode(path), 0, len(rows), 0)], output)
        outputs.append(output)
    union = folder / "union"
    _dedup.unique_pairs(outputs, os.fsencode(union), os.fsencode(folder / "scratch"))
    pairs = np.fromfile(union, np.int64).reshape(-1, 2)
    return pairs, _dedup.jaccard(pairs, *Recipe().signer().shingle_sets(*memory))


def compare_quality(texts: list[str], threshold: float, folder: Path) -> None:
    truth, pairs, similarity = all_pairs(texts, threshold)
    print(f"quality: {len(texts):,} documents, {len(truth):,} pairs with J >= {threshold}")
    signatures = Recipe().signer().sign(*text_memory(pa.array(texts, pa.large_string())))[0]
    near = (similarity >= 0.6) & (similarity <= 0.8)
    estimate = (signatures[pairs[near, 0]] == signatures[pairs[near, 1]]).mean(axis=1)
    error = np.sqrt(((estimate - similarity[near]) ** 2).mean())
    expected = np.sqrt((similarity[near] * (1 - similarity[near]) / Recipe().permutations).mean())
    print(f"  estimates of J in .6 to .8 ({near.sum():,} pairs): rmse {error:.4f}, in theory {expected:.4f}")
    print(f"  {'bands x rows':<26}candidates  recall  in theory  precision  after the exact check: recall, precision")
    true_similarity = similarity[similarity >= threshold]
    default = [(14, 9), (18, 7), (21, 6), (25, 5)]
    recipes = [(f"{bands} x {rows}", Recipe(bands=bands, rows=rows)) for bands, rows in default]
    for name, recipe in [*recipes, ("14 x 9, preset kaiyuan", kaiyuan_preset())]:
        found, exact = candidates(texts, recipe, folder)
        proposed: Pairs = {*map(tuple, found.tolist())}
        checked: Pairs = {*map(tuple, found[exact >= threshold].tolist())}
        expected = (1 - (1 - true_similarity**recipe.rows) ** recipe.bands).mean()
        print(
            f"  {name:<26}{len(proposed):>10,}{len(proposed & truth) / len(truth):>8.4f}{expected:>11.4f}"
            f"{len(proposed & truth) / max(len(proposed), 1):>11.4f}  {len(checked & truth) / len(truth):.4f}, "
            f"{len(checked & truth) / max(len(checked), 1):.4f}",
            flush=True,
        )


def compare_boilerplate(texts: list[str], folder: Path) -> None:
    """Long unrelated documents that share much of their text: what would be joined wrongly."""
    for share in (0.3, 0.6):
        documents = boilerplate_documents(texts, 40_000, share)
        truth, _, similarity = all_pairs(documents, 0.7)
        found, exact = candidates(documents, Recipe(), folder)
        joined = (exact >= 0.7).sum()
        print(
            f"boilerplate: {len(documents):,} documents of 40 kB, {share:.0%} of each the same; J up to "
            f"{similarity.max():.3f}, {len(found):,} candidates, {joined:,} joined, {len(truth):,} in truth"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents", type=int, default=6000, help="at most, in English; fewer where there are no more"
    )
    parser.add_argument("--peer-documents", type=int, default=400, help="of these, for the peers' speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kaiyuan", type=Path, help="a clone of Kaiyuan-Spark")
    arguments = parser.parse_args()
    print(f"{processor()}; load {os.getloadavg()[0]:.1f}; NumPy {np.__version__}; Unicode {_dedup.unicode_version}")
    english, chinese = english_documents(arguments.documents), chinese_documents(arguments.documents)
    for language, texts in (("English", english), ("Chinese", chinese)):
        compare_speed(language, texts, arguments.peer_documents, arguments.rounds, arguments.kaiyuan)
    if arguments.kaiyuan:
        require_released_bands([*english[:300], *chinese[:300]], arguments.kaiyuan)
    with tempfile.TemporaryDirectory() as folder:
        compare_quality([*english, *near_copies(english, len(english) // 40)], 0.7, Path(folder))
        compare_boilerplate(english, Path(folder))


if __name__ == "__main__":
    main()
