"""The cut into tasks loses and repeats nothing, and which rank of a launcher this is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.reading import lines as lines_module
from data_tools.reading.inputs import find_inputs
from data_tools.reading.lines import lines_before
from data_tools.reading.place import Place, default_workers, find_place
from data_tools.reading.tasks import Settings, Task, cut_tasks
from data_tools.reading.text import Rows, line_rows
from megatron_kaiyuan.errors import UserError

TOKENIZER = {"fingerprint": "xxh3:0", "vocab_size": 10, "eod_id": 0}
SETTINGS = Settings(Path("tokenizer.json"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks") / "in.txt"


def read(task: Task, settings: Settings = SETTINGS) -> list[Rows]:
    return list(line_rows(task, settings))


LINES = st.lists(st.sampled_from([b"", b"a", b"\r", b"two words", "中".encode() * 9, b"x" * 60]), max_size=12)


@given(lines=LINES, ended=st.booleans(), size=st.integers(1, 100), batch=st.integers(1, 50))
def test_tasks_of_any_size_read_each_line_once(
    path: Path, lines: list[bytes], ended: bool, size: int, batch: int
) -> None:
    content = b"\n".join(lines) + (b"\n" if ended else b"")
    path.write_bytes(content)
    whole = content.splitlines(keepends=True) if b"\r" not in content else content.split(b"\n")
    before, found = 0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "BATCH_BYTES", batch)
        for task in cut_tasks(find_inputs([path]), SETTINGS, TOKENIZER, size):
            assert lines_before(task) == before
            rows = read(task)
            found += [text for part in rows for text in part.texts["text"]]
            before += sum(part.count for part in rows)
    wanted = [line.rstrip(b"\r\n") if line.endswith((b"\n", b"\r")) else line for line in whole if line.strip()]
    assert found == [line.decode() for line in wanted]
    assert before == content.count(b"\n") + bool(content and not content.endswith(b"\n"))


# After a letter, since a file may not begin as packed ones and those in other encodings do.
@given(content=st.binary(max_size=200).map(lambda rest: b"a" + rest), size=st.integers(1, 100))
def test_bad_rows_have_the_same_place_in_any_cut(path: Path, content: bytes, size: int) -> None:
    path.write_bytes(content)
    places = []
    for task_bytes in (size, 1000):
        found = []
        for task in cut_tasks(find_inputs([path]), SETTINGS, TOKENIZER, task_bytes):
            before = lines_before(task)
            found += [(bad.row + before, bad.offset, bad.reason) for part in read(task) for bad in part.bad]
        places.append(found)
    assert places[0] == places[1]
    for number, offset, _ in places[0]:
        assert content[:offset].count(b"\n") == number - 1


def test_the_name_of_a_task_follows_whatever_its_content_depends_on(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"

    def name(settings: Settings = SETTINGS, tokenizer: dict = TOKENIZER) -> str:
        return cut_tasks(find_inputs([path]), settings, tokenizer)[0].name

    path.write_bytes(b"{}\n")
    first = name()
    assert name(replace(SETTINGS, tokenizer_engine="reference", eod_token="named instead of guessed")) == first
    others = [name(tokenizer={**TOKENIZER, "fingerprint": "xxh3:1"}), name(tokenizer={**TOKENIZER, "eod_id": 1})]
    for change in (
        {"json_keys": ("body",)},
        {"score_keys": ("score",)},
        {"meta_keys": ("url",)},
        {"append_eod": False},
        {"max_characters": 5},
        {"text_column": "content"},
        {"text_documents": "file"},
    ):
        others.append(name(replace(SETTINGS, **change)))
    os.utime(path, ns=(1, 1))
    others.append(name())
    path.write_bytes(b"{}\n\n")
    os.utime(path, ns=(1, 1))
    others.append(name())
    assert len({first, *others}) == len(others) + 1


OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}


def test_the_place_comes_from_the_launcher() -> None:
    assert find_place({}) == Place(0, 1, 1)
    assert find_place(OPEN_MPI) == Place(2, 4, 2)
    assert find_place({**ARRAY, "SLURM_ARRAY_TASK_STEP": "2"}) == Place(2, 3, 1)
    assert find_place({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "3"}) == Place(0, 3, 1)
    # mpirun inside each element of an array.
    assert find_place({**OPEN_MPI, **ARRAY, "SLURM_ARRAY_TASK_STEP": "2"}) == Place(10, 12, 2)
    with pytest.raises(UserError, match="give sbatch an array without gaps"):
        find_place(ARRAY)
    with pytest.raises(UserError, match="must both be whole numbers"):
        find_place({"SLURM_ARRAY_TASK_ID": "0"})


def test_ranks_of_one_machine_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert default_workers(Place()) == cores
    assert default_workers(Place(0, 1000, 1000)) == 1
