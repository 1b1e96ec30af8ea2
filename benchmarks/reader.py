"""Samples a second and opening time of the reader against Megatron Core's GPTDataset, in one process.

    python -m benchmarks.reader

Samples: one corpus of uint16 ids, documents in random order, 4,096 tokens a sample. Both give tokens and labels as
torch int64; GPTDataset also a loss mask, and position ids that it keeps from the first sample on (no end-of-document
resets, no attention mask: its fastest setting). Our trainer makes these once for a run. Cold: the files were flushed
and given back to the disk (posix_fadvise) and are opened again, so that mostly the disk is measured. Warm: the same
samples again, the best of three rounds. `random places`: each sample lies in another part of the phase, so that its
block is walked again.

Opening: a corpus of ten million documents, without its tokens (a sparse file), which neither side looks at. GPTDataset
builds its document, sample and shuffle index, which rank 0 does while all others wait; a second start finds them on
disk. Ours opens a phase that was built before. The check of all rows and blocks is shared by the ranks of a job.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools import _index
from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.data.stream import TokenStream

SEQ_LENGTH, VOCAB, ROUNDS, BATCH = 4096, 50_000, 3, 8


def write_corpus(prefix: Path, lengths: NDArray[np.int32], with_tokens: bool) -> Path:
    writer = _index.IndexWriter(os.fsencode(f"{prefix}.idx"), 8)
    writer.add(lengths)
    writer.finish(1)
    with open(f"{prefix}.bin", "wb") as file:
        if with_tokens:
            generator = np.random.default_rng(1)
            for part in np.array_split(lengths, 20):
                file.write(memoryview(generator.integers(1, VOCAB, int(part.sum()), dtype=np.uint16)))
        else:
            file.truncate(2 * int(lengths.sum(dtype=np.int64)))
        file.flush()
        os.fsync(file.fileno())
    return prefix


def build_order(prefix: Path, folder: Path) -> Path:
    phase = PhaseRecipe.model_validate({"name": "all", "order": "shuffle", "datasets": [{"corpus": "text"}]})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        build_phase(phase, {"text": prefix}, folder, threads=os.cpu_count() or 1)
    return folder


def gpt_dataset(prefix: Path, cache: Path) -> Any:
    """One epoch of a corpus, as Megatron's pretraining opens it."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        eod, pad, unique_identifiers, vocab_size = 0, -1, {"none": "none"}, VOCAB

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQ_LENGTH,
        split="100,0,0",
        path_to_cache=str(cache),
        tokenizer=Tokenizer(),  # type: ignore[arg-type]
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    indexed = IndexedDataset(str(prefix))
    documents: NDArray[np.int32] = np.arange(len(indexed), dtype=np.int32)
    return GPTDataset(indexed, str(prefix), documents, None, Split.train, config)


def forget(folder: Path) -> None:
    """Give the pages of all files back; those that are mapped stay, so nothing may be open."""
    gc.collect()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read_theirs(dataset: Any, numbers: Sequence[int]) -> None:
    for number in numbers:
        dataset[number]


def read_ours(stream: TokenStream, positions: NDArray[np.int64], batch: int) -> None:
    for at in range(0, len(positions), batch):
        tokens, _ = stream.read_batch(positions[at : at + batch], SEQ_LENGTH + 1)
        read = torch.from_numpy(tokens)
        read[:, :-1], read[:, 1:]  # as the trainer takes tokens and labels


def cold_and_warm(folder: Path, samples: int, open_it: Callable[[], Any], read: Callable[[Any], None]) -> list[float]:
    """Samples a second of the first round, and of the best later one; opening is not counted."""
    forget(folder)
    opened = open_it()
    cold = seconds(lambda: read(opened))
    warm = min(seconds(lambda: read(opened)) for _ in range(ROUNDS))
    return [samples / cold, samples / warm]


def compare_samples(folder: Path, tokens: int) -> Iterator[str]:
    lengths = np.random.default_rng(2).lognormal(6.4, 1.0, tokens // 1000).astype(np.int32) + 1
    prefix = write_corpus(folder / "text", lengths, with_tokens=True)
    phase = build_order(prefix, folder / "phase")
    dataset = gpt_dataset(prefix, folder / "cache")
    samples = min(len(dataset) - 1, int(lengths.sum()) // SEQ_LENGTH - 1)
    del dataset
    in_order: NDArray[np.int64] = np.arange(samples, dtype=np.int64) * SEQ_LENGTH
    anywhere = np.random.default_rng(3).integers(0, int(lengths.sum()) - SEQ_LENGTH - 1, samples)
    yield f"{samples:,} samples of {SEQ_LENGTH} tokens, {len(lengths):,} documents, {lengths.sum() / 1e6:.0f} M tokens"

    def open_theirs() -> Any:
        return gpt_dataset(prefix, folder / "cache")

    theirs = cold_and_warm(folder, samples, open_theirs, partial(read_theirs, numbers=range(samples)))
    yield f"{'GPTDataset.__getitem__':34}{theirs[0]:>12,.0f} cold {theirs[1]:>12,.0f} warm, samples/s"
    for name, positions, batch in (
        ("ours, in order", in_order, 1),
        (f"ours, in order, {BATCH} a call", in_order, BATCH),
        ("ours, random places", anywhere, 1),
        (f"ours, random places, {BATCH} a call", anywhere, BATCH),
    ):
        read = partial(read_ours, positions=positions, batch=batch)
        found = cold_and_warm(folder, samples, partial(TokenStream, [phase], VOCAB, check=None), read)
        ratios = [mine / other for mine, other in zip(found, theirs, strict=True)]
        yield (
            f"{name:34}{found[0]:>12,.0f} cold {found[1]:>12,.0f} warm, samples/s: "
            f"{ratios[0]:.1f} and {ratios[1]:.1f} times GPTDataset, {1e6 / found[1]:.1f} us a sample"
        )


def compare_opening(folder: Path, documents: int) -> Iterator[str]:
    lengths = np.random.default_rng(4).integers(50, 150, documents, dtype=np.int32)
    prefix = write_corpus(folder / "text", lengths, with_tokens=False)
    phase = build_order(prefix, folder / "phase")
    yield f"{documents:,} documents"
    built = seconds(lambda: gpt_dataset(prefix, folder / "cache"))
    again = seconds(lambda: gpt_dataset(prefix, folder / "cache"))
    yield f"GPTDataset, index built          {built:10.3f} s\nGPTDataset, index found on disk  {again:10.3f} s"
    opened = min(seconds(lambda: TokenStream([phase], VOCAB, check=None)) for _ in range(ROUNDS))
    yield f"ours                             {opened:10.4f} s: {built / opened:,.0f} times faster than the index build"
    for ranks in (1, 64):
        part = (ranks - 1, ranks)
        checked = min(seconds(partial(TokenStream, [phase], VOCAB, check=part)) for _ in range(ROUNDS))
        yield (
            f"ours, with the check by {ranks:>2} ranks {checked:10.4f} s: "
            f"{built / checked:,.1f} times faster than the index build"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Reader against Megatron Core's GPTDataset")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="tokens to read samples from")
    parser.add_argument("--documents", type=int, default=10_000_000, help="documents to open")
    parser.add_argument("--folder", type=Path, help="where to make the data (default: the system's temporary folder)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    print(f"megatron-core {version('megatron-core')}, torch {torch.__version__}, {os.cpu_count()} cores")
    for compare, size in ((compare_samples, arguments.tokens), (compare_opening, arguments.documents)):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            for line in compare(Path(name), size):
                print(line, flush=True)
        print()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
