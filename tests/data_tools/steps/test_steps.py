"""Steps over documents: what stays, what is dropped and why, every field kept, the same bytes on every engine."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.engines.local import LocalEngine
from data_tools.reading.documents import document_batches
from data_tools.reading.inputs import find_inputs
from data_tools.steps.datasets import find_datasets, reading_settings
from data_tools.steps.folder import workplace
from data_tools.steps.verify import verify_documents
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.small_steps import digest, run, write_documents


def test_every_field_comes_through_and_what_goes_says_why(tmp_path: Path) -> None:
    rows = write_documents(tmp_path / "a.jsonl", 300)
    manifest = run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    kept = pq.read_table(tmp_path / "out" / "documents").to_pylist()
    gone = pq.read_table(tmp_path / "out" / "dropped").to_pylist()
    expected = [row for row in rows if len(row["text"]) >= 10]
    assert [row["text"] for row in kept] == [row["text"] for row in expected]
    assert [(row["n"], row["score"]) for row in kept] == [(row["n"], row["score"]) for row in expected]
    assert [json.loads(row["tags"]) if row["tags"] else None for row in kept] == [row.get("tags") for row in expected]
    assert {row["kaiyuan_dropped"] for row in gone} == {"short"} and len(gone) + len(kept) == 300
    assert len({row["kaiyuan_id"] for row in kept + gone}) == 300
    counts = manifest["datasets"][""]
    assert (counts["rows"], counts["documents"], counts["dropped"]) == (300, len(kept), {"short": len(gone)})
    assert not (tmp_path / "out.work").exists()


def test_what_comes_out_goes_in_again_with_its_ids(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 200)
    run([f"web={tmp_path / 'a.jsonl'}"], tmp_path / "one", LocalEngine(1), least=5)
    run([f"web={tmp_path / 'one' / 'documents'}"], tmp_path / "two", LocalEngine(1), least=20)
    first = {row["kaiyuan_id"]: row["text"] for row in pq.read_table(tmp_path / "one" / "documents").to_pylist()}
    second = pq.read_table(tmp_path / "two" / "documents" / "web").to_pylist()
    assert second and all(first[row["kaiyuan_id"]] == row["text"] for row in second)


def test_a_folder_that_was_written_brings_its_datasets(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 50)
    write_documents(tmp_path / "b.jsonl", 60, seed=2)
    first = run([f"web={tmp_path / 'a.jsonl'}", f"wiki={tmp_path / 'b.jsonl'}"], tmp_path / "one", LocalEngine(1))
    second = run([str(tmp_path / "one")], tmp_path / "two", LocalEngine(1), least=20)
    assert {name: counts["rows"] for name, counts in second["datasets"].items()} == {
        name: counts["documents"] for name, counts in first["datasets"].items()
    }
    # What was dropped, the manifest and a run that has not ended are no input of other commands either.
    (tmp_path / "one.work").mkdir()
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "one.work")
    found = {str(Path(file.name).relative_to(tmp_path)) for file in find_inputs([tmp_path / "one"])}
    assert found == {
        f"one/documents/{name}/{number:06d}.parquet"
        for name in ("web", "wiki")
        for number in range(len(list((tmp_path / "one" / "documents" / name).iterdir())))
    }
    assert {Path(file.name).name for file in find_inputs([tmp_path])} == {"a.jsonl", "b.jsonl"}


def test_bad_rows_are_named_over_all_shards(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 100)
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write('{"text": 5}\nnot json\n')
    with pytest.raises(UserError, match=r"a\.jsonl:101: field 'text' is not text"):
        run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    assert not (tmp_path / "out").exists()
    manifest = run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1), bad=2)
    dropped = manifest["datasets"][""]["dropped"]
    assert dropped["bad row: field 'text' is not text"] == dropped["bad row: not JSON in UTF-8"] == 1


def test_a_finished_product_is_not_made_again_and_another_one_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 100)
    run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(UserError, match="holds a folder of documents already"):
        run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1), least=11)


def test_a_dataset_has_one_schema_whatever_its_files_have(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "of a file", "x": 1, "y": "one"}\n')
    (folder / "b.jsonl").write_text("")
    (folder / "c.jsonl").write_text('{"z": true, "text": "of another", "x": 1.5, "y": 2}\n')
    pq.write_table(pa.table({"text": ["the last one"], "x": pa.array([7], pa.int8())}), folder / "d.parquet")
    run([str(folder)], tmp_path / "out", LocalEngine(1), least=1)
    files = sorted((tmp_path / "out" / "documents").iterdir())
    schemas = [pq.read_schema(file) for file in files]
    assert len(files) == 4 and all(schema == schemas[0] for schema in schemas)
    rows = [{name: row[name] for name in "xyz"} for file in files for row in pq.read_table(file).to_pylist()]
    assert rows == [
        {"x": 1.0, "y": "one", "z": None},
        {"x": 1.5, "y": "2", "z": True},
        {"x": 7.0, "y": None, "z": None},
    ]


def values(folder: Path, name: str = "x") -> list[Any]:
    return [row[name] for file in sorted(folder.iterdir()) for row in pq.read_table(file).to_pylist()]


def test_whole_numbers_are_never_rounded(tmp_path: Path) -> None:
    large, beyond = 2**53 + 1, 2**63 + 1
    cases: list[tuple[str, list[list[Any]], list[Any]]] = [
        ("one_file", [[1.5, large]], ["1.5", str(large)]),
        ("exact", [[1.5, 2**53, -(2**53)]], [1.5, 2.0**53, -(2.0**53)]),
        ("integers", [[1, large, -(2**63)]], [1, large, -(2**63)]),
        ("beyond", [[1, large, beyond]], ["1", str(large), str(beyond)]),
        ("two_files", [[1.5], [large, None]], ["1.5", str(large), None]),
        ("two_exact", [[1.5], [2**53]], [1.5, 2.0**53]),
    ]
    for name, found, wanted in cases:
        folder = tmp_path / name
        folder.mkdir()
        for number, numbers in enumerate(found):
            rows = [json.dumps({"text": "a text", "x": value}) for value in numbers]
            (folder / f"{number}.jsonl").write_text("\n".join(rows))
        run([str(folder)], tmp_path / f"{name}.out", LocalEngine(1), least=1)
        assert values(tmp_path / f"{name}.out" / "documents") == wanted, name


@pytest.mark.parametrize(("kind", "value"), [(pa.uint64(), 2**64 - 1), (pa.int64(), 2**53 + 1), (pa.int32(), 7)])
@pytest.mark.parametrize(("other", "beside"), [(pa.float64(), 0.5), (pa.float32(), 0.5), (pa.int64(), -1)])
def test_columns_of_parquet_files_are_never_rounded(tmp_path: Path, kind, value, other, beside: float) -> None:
    for name, numbers in (("a", pa.array([value], kind)), ("b", pa.array([beside], other))):
        pq.write_table(pa.table({"text": ["a text"], "x": numbers}), tmp_path / f"{name}.parquet")
    run([str(tmp_path / name) for name in ("a.parquet", "b.parquet")], tmp_path / "out", LocalEngine(1), least=1)
    assert [type(beside)(number) for number in values(tmp_path / "out" / "documents")][1] == beside
    assert int(values(tmp_path / "out" / "documents")[0]) == value


def test_names_of_fields_are_kept_or_their_rows_are_bad(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a text", "": 1, "a\\u0000b": 2, "a.b": 3}\n')
    run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1), least=1)
    row = pq.read_table(tmp_path / "out" / "documents").to_pylist()[0]
    assert (row[""], row["a\0b"], row["a.b"]) == (1, 2, 3)
    (tmp_path / "b.jsonl").write_text('{"text": "a text", "a\\ud800": 3}\n')
    with pytest.raises(UserError, match=r'b\.jsonl:1: the name "a\\ud800" of a field holds half of a surrogate pair'):
        run([str(tmp_path / "b.jsonl")], tmp_path / "two", LocalEngine(1), least=1)
    assert not (tmp_path / "two").exists()


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a text", "x": 1}\n')
    for line, message in (
        ("", r"no row has the field 'nope'; there are text, x; name the one with the text as --json-key"),
        ('{"text": "b", "nope": "c"}\n', r"has a field 'text' beside 'nope'"),
    ):
        with open(tmp_path / "a.jsonl", "a") as file:
            file.write(line)
        shards = find_datasets([str(tmp_path / "a.jsonl")], reading_settings("nope"))[0].shards
        with pytest.raises(UserError, match=rf"a\.jsonl: {message}"):
            list(document_batches(shards[0], reading_settings("nope")))


@pytest.mark.parametrize("name", ["数据", "my web", "", "..", "a..", "a.", "-a", "a/b"])
def test_names_that_no_dataset_can_have_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "a.jsonl", 2)
    for path in ("a.jsonl", str(tmp_path), "*.jsonl"):
        with pytest.raises(UserError, match=f"--input {re.escape(name)}=.*: '{re.escape(name)}' cannot name a dataset"):
            find_datasets([f"{name}={path}"], reading_settings())
    with pytest.raises(UserError, match="nowhere: input not found"):
        find_datasets([f"{name}=nowhere"], reading_settings())


def test_a_path_with_an_equals_sign_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a b=c", "day=1", "c", "1"):
        (tmp_path / folder).mkdir()
        write_documents(tmp_path / folder / "a.jsonl", 2)
    for word in ("a b=c", "a b=c/*.jsonl", "day=1", "day=1/*.jsonl", str(tmp_path / "a b=c")):
        assert [each.name for each in find_datasets([word], reading_settings())] == [""], word
    assert [each.name for each in find_datasets([f"a.b-c_={tmp_path}"], reading_settings())] == ["a.b-c_"]


def test_too_many_tasks_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.truncate(10**12)  # takes no room
    for task_bytes, message in (
        (1, r"--task-bytes 1: makes 1,000,000,000,000 tasks of the input, more than 65,536; give more"),
        (1 << 19, r"--task-bytes 524288: makes 1,907,349 tasks of the input, more than 65,536; give more"),
        (-1, "--task-bytes -1: must be between 0 and "),
    ):
        with pytest.raises(UserError, match=message):
            find_datasets([str(tmp_path / "a.jsonl")], reading_settings(), task_bytes)
    tasks = find_datasets([str(tmp_path / "a.jsonl")], reading_settings(), 10**9)[0].shards
    assert len(tasks) == 1000


def test_types_without_a_common_one_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "x": [[1]]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "x": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: column 'x' is int64, and list<.*> in another file"):
        run([str(tmp_path / name) for name in ("a.parquet", "b.parquet")], tmp_path / "out", LocalEngine(1), least=1)
    assert not (tmp_path / "out").exists()


def test_columns_of_the_users_keep_their_names_or_are_refused(tmp_path: Path) -> None:
    own = {"text": ["a text", "another text"], "dropped": ["mine", None]}
    pq.write_table(pa.table(own), tmp_path / "a.parquet")
    run([str(tmp_path / "a.parquet")], tmp_path / "one", LocalEngine(1), least=10)
    kept, gone = (pq.read_table(tmp_path / "one" / name).to_pylist() for name in ("documents", "dropped"))
    assert [row["dropped"] for row in kept] == [None]
    assert [(row["dropped"], row["kaiyuan_dropped"]) for row in gone] == [("mine", "short")]
    # What was dropped can go in again: earlier reasons do not count.
    manifest = run([str(tmp_path / "one" / "dropped")], tmp_path / "two", LocalEngine(1), least=1)
    assert manifest["datasets"][""]["documents"] == 1
    for ids in (["x", "y"], [1, None], [-1, 2]):
        pq.write_table(pa.table({"text": ["a", "b"], "kaiyuan_id": ids}), tmp_path / "b.parquet")
        with pytest.raises(UserError, match="'kaiyuan_id' holds no ids that a command gave"):
            run([str(tmp_path / "b.parquet")], tmp_path / "three", LocalEngine(1))


def test_input_and_output_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_documents(tmp_path / "in" / "a.jsonl", 50)
    first = run([str(tmp_path / "in")], tmp_path / "in" / "out", LocalEngine(1))
    # What was made of a folder and lies in it is not read with it again.
    second = run([str(tmp_path / "in")], tmp_path / "in" / "other", LocalEngine(1), least=20)
    assert first["datasets"][""]["rows"] == second["datasets"][""]["rows"] == 50
    with pytest.raises(UserError, match="is input, and lies in the output"):
        run([str(tmp_path / "in" / "out")], tmp_path / "in" / "out", LocalEngine(1), least=20)
    with pytest.raises(UserError, match="is input, and lies in the output"):
        run([str(tmp_path / "in" / "out")], tmp_path / "in", LocalEngine(1), least=20)


def test_a_product_of_another_command_is_not_replaced(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 50)
    run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    identity, engine = "0" * 32, LocalEngine(1)
    with (
        pytest.raises(UserError, match="was written by kaiyuan-data test"),
        workplace(tmp_path / "out", "score", identity, [], engine, force=True),
    ):
        pass


def test_a_file_that_is_gone_is_named_and_made_again(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 50)
    run([f"web={tmp_path / 'a.jsonl'}"], tmp_path / "out", LocalEngine(1))
    lost = tmp_path / "out" / "documents" / "web" / "000000.parquet"
    content = lost.read_bytes()
    assert verify_documents(tmp_path / "out").documents == len(pq.read_table(tmp_path / "out" / "documents" / "web"))
    lost.write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(UserError, match=r"000000\.parquet: damaged, its checksum is"):
        verify_documents(tmp_path / "out")
    lost.unlink()
    for wrong in (
        lambda: verify_documents(tmp_path / "out", fast=True),
        lambda: find_datasets([str(tmp_path / "out")], reading_settings()),
    ):
        with pytest.raises(UserError, match=r"000000\.parquet: is gone, and listed in manifest\.json"):
            wrong()
    run([f"web={tmp_path / 'a.jsonl'}"], tmp_path / "out", LocalEngine(1))
    assert lost.read_bytes() == content


def test_views_come_through_as_texts(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a long enough text", "short"], pa.string_view()),
            "b": pa.array([b"1", None], pa.binary_view()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    run([str(tmp_path / "a.parquet")], tmp_path / "out", LocalEngine(1))
    kept = pq.read_table(tmp_path / "out" / "documents").to_pylist()
    assert [(row["text"], row["b"]) for row in kept] == [("a long enough text", b"1")]


def test_datasets_have_names_or_have_none(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 5)
    write_documents(tmp_path / "b.jsonl", 5)
    with pytest.raises(UserError, match=r"b\.jsonl: is a dataset without a name, others have one"):
        run([f"web={tmp_path / 'a.jsonl'}", str(tmp_path / "b.jsonl")], tmp_path / "out", LocalEngine(1))


RANK = """
import sys
from pathlib import Path
from tests.helpers.files.small_steps import run
from data_tools.engines.choose import choose_engine
engine = choose_engine(sys.argv[4], int(sys.argv[5]))
run(["web=" + sys.argv[1], "wiki=" + sys.argv[2]], Path(sys.argv[3]), engine, seconds=0.01)
"""


def start(
    tmp_path: Path, output: str, engine: str, workers: int = 0, rank: int = 0, world: int = 1
) -> subprocess.Popen:
    environ = {**os.environ}
    if world > 1:
        environ |= {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(world)}
        environ |= {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(world)}
    words = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), str(tmp_path / output), engine, str(workers)]
    return subprocess.Popen([sys.executable, "-c", RANK, *words], env=environ, start_new_session=True)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("steps")
    write_documents(folder / "a.jsonl", 1500, seed=1)
    write_documents(folder / "b.jsonl", 700, seed=2)
    assert start(folder, "one", "local", 1).wait() == 0
    return folder


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_write_the_bytes_of_one_process(texts, world: int) -> None:
    output = f"of_{world}_ranks"
    ranks = [start(texts, output, "mpi", rank=rank, world=world) for rank in range(world)]
    assert [rank.wait() for rank in ranks] == [0] * world
    assert digest(texts / output) == digest(texts / "one")
    assert not (texts / f"{output}.work").exists()


@pytest.mark.parametrize("engine", ["local", "mpi"])
def test_kills_at_random_moments_lose_nothing(texts, engine: str) -> None:
    draw = random.Random(3)
    world = 3 if engine == "mpi" else 1
    for _ in range(4):
        ranks = [start(texts, f"killed_{engine}", engine, 2 if world == 1 else 0, rank, world) for rank in range(world)]
        time.sleep(draw.uniform(0.5, 1.6))
        os.killpg(draw.choice(ranks).pid, signal.SIGKILL)
        time.sleep(0.2)
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()
    assert start(texts, f"killed_{engine}", "local", 2).wait() == 0
    assert digest(texts / f"killed_{engine}") == digest(texts / "one")
    assert not (texts / f"killed_{engine}.work").exists()


def test_a_rank_that_dies_is_done_without(texts) -> None:
    ranks = [start(texts, "without_one", "mpi", rank=rank, world=3) for rank in range(3)]
    time.sleep(1.0)
    os.killpg(ranks[2].pid, signal.SIGKILL)
    assert [rank.wait() for rank in ranks[:2]] == [0, 0]
    ranks[2].wait()
    assert digest(texts / "without_one") == digest(texts / "one")


def test_a_folder_of_the_users_that_has_the_name_of_the_work_folder_stays(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 50)
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "mine.txt").write_text("mine")
    run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    assert [path.name for path in (tmp_path / "out.work").iterdir()] == ["mine.txt"]


def test_what_a_kill_left_of_the_work_folder_goes_at_the_next_start(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 50)
    run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    (tmp_path / "out.work" / "0123456789abcdef" / "filter").mkdir(parents=True)
    run([str(tmp_path / "a.jsonl")], tmp_path / "out", LocalEngine(1))
    assert not (tmp_path / "out.work").exists()
