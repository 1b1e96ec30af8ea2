"""Joined corpora are the bytes of one writer; what does not fit is refused in one line and leaves nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from data_tools.corpora import sidecar
from data_tools.corpora.corpus import CorpusWriter, Documents, manifest_path
from data_tools.corpora.corpus_files import sealed_paths
from data_tools.corpora.merge import merge_corpora
from data_tools.corpora.verify import verify
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_sealed_json
from tests.helpers.processes.command import Command

TOKENIZER = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": 100, "eod_id": 0}
documents_lists = st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=6)


def write(prefix: Path, documents: list[list[int]], first: int = 0, vocab_size: int = 100, **tokenizer) -> Path:
    count = len(documents)
    with CorpusWriter(
        prefix, {**TOKENIZER, "vocab_size": vocab_size, **tokenizer}, ["score"], [f"in{first}.jsonl"], ["url"]
    ) as writer:
        numbers = range(first, first + count)
        writer.add(
            Documents(
                np.array([*chain(*documents)], np.int64),
                [len(document) for document in documents],
                [number % 50 for number in numbers],
                [f"domain {number % 3}" for number in numbers],
                [f"source {number}" for number in numbers],
                {"score": [number / 8 for number in numbers]},
                {"url": [None if number % 4 else f"u{number}" for number in numbers]},
            )
        )
        writer.skipped["not JSON"] += first
    return prefix


def contents(prefix: Path) -> list[bytes]:
    return [path.read_bytes() for path in sealed_paths(prefix)]


@given(st.lists(documents_lists, min_size=1, max_size=4), st.sampled_from([100, 65499, 65500, 200_000]))
@settings(max_examples=25)  # each writes and flushes up to twenty files
def test_joined_parts_equal_one_writer(tmp_path_factory: pytest.TempPathFactory, parts, vocab_size: int) -> None:
    folder = tmp_path_factory.mktemp("merge")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sidecar, "ROWS_PER_GROUP", 3)
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        prefixes = [
            write(folder / f"part{i}", part, first, vocab_size)
            for i, (part, first) in enumerate(zip(parts, starts[:-1], strict=True))
        ]
        whole = write(folder / "whole", [*chain(*parts)], 0, vocab_size)
        summary = merge_corpora(prefixes, folder / "joined", threads=2)
    assert contents(folder / "joined") == contents(whole)
    assert f"{verify(folder / 'joined').tokens} tokens" in summary
    joined, alone = (json.loads(manifest_path(prefix).read_text()) for prefix in (folder / "joined", whole))
    assert joined.pop("seal") != alone.pop("seal")  # their files have other names
    assert joined.pop("sources") == list(dict.fromkeys(f"in{first}.jsonl" for first in starts[:-1]))
    assert joined["skipped"].pop("not JSON", 0) == sum(starts[:-1])
    alone.pop("sources")
    for name, entry in alone.pop("files").items():
        assert joined["files"][name.replace("whole", "joined")] == entry
    joined.pop("files")
    joined.pop("identity")  # of what was joined
    assert joined == alone


def test_merging_as_megatron_does(tmp_path: Path) -> None:
    """The same bytes as add_index of Megatron's builder."""
    parts = [write(tmp_path / "a", [[1, 2], [], [3]]), write(tmp_path / "b", [[], [4, 5, 6]])]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for part in parts:
        builder.add_index(str(part))
    builder.finalize(str(tmp_path / "theirs.idx"))
    merge_corpora(parts, tmp_path / "ours")
    assert contents(tmp_path / "ours")[:2] == [
        (tmp_path / f"theirs{suffix}").read_bytes() for suffix in (".bin", ".idx")
    ]


def change_manifest(prefix: Path, **changes) -> None:
    manifest = json.loads(manifest_path(prefix).read_text())
    write_sealed_json(manifest_path(prefix), {**manifest, **changes})


def refuse(prefixes: list[Path], output: Path, message: str) -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        merge_corpora(prefixes, output)
    assert "\n" not in str(caught.value)
    assert sorted(output.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fingerprint": "xxh3:1"}, r"b.manifest.json: made by another tokenizer.*fingerprint xxh3:1, not xxh3:0"),
        ({"vocab_size": 65500}, "vocab_size 65500, not 100"),
        ({"eod_id": 1}, "eod_id 1, not 0"),
    ],
)
def test_corpora_of_two_tokenizers_are_refused(
    tmp_path: Path, other: dict[str, int] | dict[str, str], message: str
) -> None:
    a, b = write(tmp_path / "a", [[1]]), write(tmp_path / "b", [[1]], **other)
    refuse([a, b], tmp_path / "c", message)


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", [[1, 2], [3]]), write(tmp_path / "b", [[1]])
    refuse([], tmp_path / "c", "name at least one corpus")
    refuse([a, b, a], tmp_path / "c", "is named twice")
    refuse([a, b], a, "is the output too")
    refuse([a, tmp_path / "none"], tmp_path / "c", "none.manifest.json: corpus manifest not found")
    with CorpusWriter(tmp_path / "d", TOKENIZER) as writer:
        writer.skipped["empty text"] += 1
    refuse([a, tmp_path / "d"], tmp_path / "c", "has the scores none, but .*a has score; make both")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".meta.parquet"])
def test_a_damaged_part_is_refused_wherever_it_is_damaged(tmp_path: Path, suffix: str) -> None:
    a, b = write(tmp_path / "a", [[1, 2], [3]]), write(tmp_path / "b", [[1, 5]])
    path = b.with_name("b" + suffix)
    whole = path.read_bytes()
    for at in range(0, len(whole), max(len(whole) // 10, 1)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refuse([a, b], tmp_path / "c", "b" + suffix)
    path.write_bytes(whole[:-1])
    refuse([a, b], tmp_path / "c", "b" + suffix)
    path.unlink()
    refuse([a, b], tmp_path / "c", f"b{suffix}: .*not found")


@pytest.mark.parametrize("name", ["../a.bin", "/etc/passwd", "sub/a.bin", "..", "c.bin", "a.bin\u0000", "a\\b.bin"])
def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    a, b = write(tmp_path / "a", [[1]]), write(tmp_path / "b", [[1]])
    files = json.loads(manifest_path(a).read_text())["files"]
    change_manifest(a, files={**files, name: files["a.bin"]})
    refuse([a, b], tmp_path / "c", "which is none of this corpus")
    with pytest.raises(UserError, match="which is none of this corpus"):
        verify(a, fast=True)


def test_a_wrong_count_is_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", [[1, 2], [3]]), write(tmp_path / "b", [[1]])
    change_manifest(a, sequences=3)
    refuse([a, b], tmp_path / "c", "says 3 sequences, but the index has 2")


LARGE = 200_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Parts whose merge takes long enough to be killed in its middle, and what it must give."""
    folder = tmp_path_factory.mktemp("large")
    prefixes = [folder / "part0", folder / "part1"]
    for prefix in prefixes:
        with CorpusWriter(prefix, TOKENIZER) as writer:
            names = [f"{prefix.name} {i}" for i in range(LARGE)]
            tokens = np.arange(10 * LARGE) % 100
            writer.add(Documents(tokens, np.full(LARGE, 10), np.full(LARGE, 9), names, names))
    merge_corpora(prefixes, folder / "whole")
    return prefixes, folder / "whole"


def merge_command(prefixes: list[Path], output: Path) -> list[str]:
    return [sys.executable, "-m", "data_tools.cli", "merge", *map(str, prefixes), "--output-prefix", str(output)]


@pytest.mark.parametrize("moments", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_merge_that_is_killed_is_done_again(large: tuple[list[Path], Path], tmp_path: Path, moments: int) -> None:
    prefixes, whole = large
    output = tmp_path / "joined"
    generator = np.random.default_rng(5)
    for _ in range(moments):
        process = subprocess.Popen(merge_command(prefixes, output), stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while not any(tmp_path.iterdir()) and time.monotonic() - began < 60:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if manifest_path(output).exists():
            verify(output)
            for path in [*sealed_paths(output), manifest_path(output)]:
                path.unlink()
        else:
            assert not output.with_name("joined.idx").exists() or contents(output) == contents(whole)
    merge_corpora(prefixes, output)
    assert contents(output) == contents(whole)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("limit", [1000, 2_000_000, 6_000_000])
def test_a_full_disk_is_told_and_leaves_nothing(large: tuple[list[Path], Path], tmp_path: Path, limit: int) -> None:
    prefixes, _ = large
    done = subprocess.run(
        merge_command(prefixes, tmp_path / "joined"),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # the limit would cut it off, for every later process
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2
    assert "joined: cannot be written (File too large); free some space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_the_command(large: tuple[list[Path], Path], tmp_path: Path, command: Command) -> None:
    prefixes, whole = large
    done = command("merge", *prefixes, "--output-prefix", tmp_path / "joined", "--threads", 2)
    assert done.stdout.splitlines()[-1].startswith("merge: 2 corpora joined, 400,000 sequences, 4,000,000 tokens, in")
    assert contents(tmp_path / "joined") == contents(whole)
    failed = command("merge", prefixes[0], tmp_path / "none", "--output-prefix", tmp_path / "x")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
