"""More corpora than a process may have files open: ordered, verified, joined and read all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_tools.corpora.corpus import CorpusWriter, Documents

TOKENIZER = {"path": "t", "fingerprint": "xxh3:0", "vocab_size": 300, "eod_id": 0}
COUNT, OPEN = 100, 70
READ = """
from pathlib import Path
from megatron_kaiyuan.data.phase import Phase
phase = Phase(Path("phases/p"))
tokens = []
for entry in range(phase.entries):
    dataset, sequence = phase.document(entry)
    tokens += phase.corpora[dataset].tokens(sequence).tolist()
assert sorted(tokens) == sorted([1, 2, 3, 4] * 100), tokens
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    names = [f"c{number}" for number in range(COUNT)]
    for name in names:
        with CorpusWriter(folder / name, TOKENIZER, ["score"]) as writer:
            writer.add(Documents(np.arange(1, 5), [2, 2], [2, 2], ["", ""], ["", ""], {"score": [0.0, 1.0]}))
    datasets = [{"corpus": name, "score": "score"} for name in names]
    recipe = {
        "corpora": {name: str(folder / name) for name in names},
        "phases": [{"name": "p", "order": "curriculum", "datasets": datasets}],
    }
    (folder / "order.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    limited = f'ulimit -n {OPEN} && exec "$@"'
    return subprocess.run(
        ["bash", "-c", limited, "limited", sys.executable, *words], cwd=folder, capture_output=True, text=True
    )


def test_commands_open_them_in_turn(folder: Path) -> None:
    names = [f"c{number}" for number in range(COUNT)]
    build = ["-m", "data_tools", "curriculum", "order.yaml", "--output", "phases"]
    for words in (
        build,
        ["-m", "data_tools", "verify", "phases/p", *names],
        ["-m", "data_tools", "merge", *names, "--output-prefix", "all"],
        ["-c", READ],
    ):
        done = run(folder, *words)
        assert done.returncode == 0, done.stderr
    # Random access to all of them at once is what this needs.
    done = run(
        folder, *["-m", "data_tools", "curriculum", "order.yaml", "--output", "phases", "--materialize", "tokens"]
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Too many open files); raise the limit of open files, as with `ulimit -n 65536`" in done.stderr
