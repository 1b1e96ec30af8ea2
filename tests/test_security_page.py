"""docs/security.md names every place where bytes from outside become objects, and no place that is gone."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.files.readers import READERS, sources

ROOT = Path(__file__).resolve().parent.parent
# What can run code that it reads, in any spelling: it stands nowhere.
FORBIDDEN = (
    r"\bpickle\.loads?\(|\bimport (cloudpickle|dill|joblib|marshal|shelve)\b|\bnp\.load\(|allow_pickle=True"
    r"|\byaml\.(unsafe_|full_)?load(_all)?\(|(?<![\w.])(eval|exec)\(|\btrust_remote_code=(?!False)"
)
# In any other part of a Parquet footer's row group pyarrow ends the process where it is damaged (`columns.py`), as it
# does in the filters of its datasets.
ENDS_THE_PROCESS = r"\brow_group\((?![^()\n]*\)\.(num_rows|total_byte_size)\b)|\bpyarrow\.dataset\b|\bfilters="


def page() -> dict[str, set[str]]:
    """The table of the page: by reader, the files that call it."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", text.partition("## Every reader")[2], re.MULTILINE)
    return {reader: set(re.findall(r"`([\w/.]+\.py)`", files)) for reader, files in rows}


def test_the_page_lists_every_reader_and_where_it_is_called() -> None:
    found = {
        reader: {file for file, text in sources().items() if re.search(pattern, text)}
        for reader, pattern in READERS.items()
    }
    assert page() == {reader: files for reader, files in found.items() if files}


def test_nothing_that_could_run_what_it_reads_is_called() -> None:
    found = [f"{file}: {match[0]}" for file, text in sources().items() for match in re.finditer(FORBIDDEN, text)]
    assert found == []


def test_no_part_of_a_footer_is_asked_for_that_could_end_the_process() -> None:
    found = [f"{file}: {match[0]}" for file, text in sources().items() for match in re.finditer(ENDS_THE_PROCESS, text)]
    assert found == []
    assert re.search(ENDS_THE_PROCESS, "metadata.row_group(0).column(1)")


def test_each_call_that_could_run_code_says_that_it_must_not() -> None:
    for file, text in sources().items():
        for match in re.finditer(READERS["transformers"], text):
            assert "trust_remote_code=False" in text[match.end() : match.end() + 160], file
        for match in re.finditer(READERS["torch.load"], text):
            assert "weights_only=True" in text[match.end() : match.end() + 80], file
