"""MB/s a core of the scorer `linear` beside fastText's library, on the same model and documents, in one run.

    pip install -e '.[scores]'
    python -m benchmarks.linear_scores
    python -m benchmarks.linear_scores --model quality.bin --documents 20000

Documents are files of Python's library and of the installed packages (source and text), cut at line ends to about
3.4 kB. Without `--model`, the library trains classifiers on other ones of them: source against text, a third of the
labels wrong, so that probabilities spread. Rates are from the process's CPU time; the two alternate, and the median of
the rounds counts. The library gets its documents as one list, line breaks as spaces, as it wants them; making these is
not in its time. Exits with 1 when a probability differs by more than 1e-4 or the rate is below 60 MB/s.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.scores.fasttext_model import FastTextModel
from megatron_kaiyuan.errors import require

SIZE = 3400
TOLERANCE, GOAL = 1e-4, 60.0
BIGRAMS, FITTED = {"wordNgrams": 2, "bucket": 2_000_000}, {"lr": 1.0, "epoch": 15}
MODELS: dict[str, dict[str, Any]] = {
    "two labels, bigrams, 2 M buckets, dim 64": {**BIGRAMS, "dim": 64},
    "two labels, bigrams, 2 M buckets, dim 100, fitted hard": {**BIGRAMS, **FITTED, "dim": 100},
    "two labels, subwords of 3-5, dim 64, fitted hard": {**FITTED, "minn": 3, "maxn": 5, "dim": 64, "bucket": 500_000},
}


def documents(count: int) -> Iterator[tuple[str, bool]]:
    """Pieces of files, and whether they are text rather than source."""
    paths = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    files = sorted({file for path in paths for kind in ("py", "txt", "md", "rst") for file in path.rglob(f"*.{kind}")})
    random.Random(1).shuffle(files)
    for file in files:
        piece = ""
        for line in file.read_text(encoding="utf-8", errors="ignore").splitlines(keepends=True)[:2000]:
            piece += line
            if len(piece) >= SIZE:
                yield piece, file.suffix != ".py"
                piece = ""
                count -= 1
                if count == 0:
                    return


def train(library: Any, folder: Path, training: list[tuple[str, bool]], settings: dict[str, Any]) -> Path:
    drawn = random.Random(2)
    lines = folder / "lines.txt"
    with open(lines, "w", encoding="utf-8") as file:
        for text, is_text in training:
            label = "hq" if is_text != (drawn.random() < 1 / 3) else "lq"
            file.write(f"__label__{label} {' '.join(text.split())}\n")
    model = library.train_supervised(str(lines), thread=1, verbose=0, **settings)
    model.save_model(str(folder / "model.bin"))
    return folder / "model.bin"


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


def library_matrix(predicted: Any, labels: list[str]) -> NDArray[np.float64]:
    names, probabilities = predicted
    places = {label: place for place, label in enumerate(labels)}
    matrix: NDArray[np.float64] = np.full((len(names), len(labels)), np.nan)
    for row, (given, values) in enumerate(zip(names, probabilities, strict=True)):
        matrix[row, [places[name] for name in given]] = values
    return matrix


def compare(library: Any, path: Path, texts: list[str], rounds: int) -> bool:
    """Print one comparison; True when it meets the goals."""
    column, lines = pa.array(texts, type=pa.large_string()), [text.replace("\n", " ") for text in texts]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    model, load_seconds = timed(lambda: FastTextModel(path))
    peer = library.load_model(str(path))
    ours_seconds, peer_seconds = [], []
    for _ in range(rounds):
        ours, seconds = timed(lambda: model.probabilities(column))
        ours_seconds.append(seconds)
        predicted, seconds = timed(lambda: peer.predict(lines, k=-1))
        peer_seconds.append(seconds)
    theirs = library_matrix(predicted, model.labels)
    difference, shifted = np.abs(ours - theirs), np.abs(ours + 1e-5 - theirs)
    rate, peer_rate = (megabytes / statistics.median(seconds) for seconds in (ours_seconds, peer_seconds))
    print(
        f"  ours {rate:6.1f} MB/s, {len(texts) * rate / megabytes:8,.0f} documents/s    "
        f"library {peer_rate:5.1f} MB/s, {len(texts) * peer_rate / megabytes:7,.0f} documents/s    "
        f"ratio {rate / peer_rate:.2f}; loading {load_seconds:.2f} s"
    )
    print(
        f"  |difference| max {difference.max():.2e} mean {difference.mean():.2e}; without the library's own + 1e-5: "
        f"max {shifted.max():.2e} mean {shifted.mean():.2e}; probabilities' SD {ours[:, 0].std():.3f}",
        flush=True,
    )
    return bool(difference.max() <= TOLERANCE and rate >= GOAL)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a supervised model (default: train some)")
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    library = require("fasttext", extra="scores", purpose="this benchmark")
    found = list(documents(arguments.documents + 2000))
    training, texts = found[:2000], [text for text, _ in found[2000:]]
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, mean {size / len(texts):,.0f} bytes; 1 core")
    passed = True
    if arguments.model:
        print(arguments.model)
        return 0 if compare(library, arguments.model, texts, arguments.rounds) else 1
    for name, settings in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(name)
            path = train(library, Path(folder), training, settings)
            print(f"  {path.stat().st_size / 1e6:,.0f} MB")
            passed = compare(library, path, texts, arguments.rounds) and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
