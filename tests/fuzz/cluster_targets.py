"""What jobs leave for the next start, and archives of environments that nodes unpack; results that are added to."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate


def _file(name: str, content: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "run").mkdir()
        (folder / "run" / name).write_text(json.dumps(content), encoding="utf-8")
        return folder / "run" / name

    return make


def _bad_nodes(path: Path) -> Any:
    from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes

    named = read_bad_nodes(path.parent)
    # They become words of a command.
    return None if named is None or not any(set(" \t\n,;") & set(host) for host in named.hosts) else f"{named.hosts}"


def _restarts(path: Path) -> Any:
    from megatron_kaiyuan.train.ending import _kept_restarts

    return None if 0 <= _kept_restarts(path.parent) <= 10**6 else "a number of restarts"


def _first_failure(path: Path) -> Any:
    from megatron_kaiyuan.train.ending import _first_failure

    return None if 1 <= _first_failure(path.parent, 143) <= 255 else "an exit code"


def _archive(folder: Path) -> Path:
    import zstandard

    from megatron_kaiyuan.staging.about import ABOUT, About

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        content = json.dumps(About("f" * 32, "/opt/venv", "python3.11", 3).as_json()).encode()
        member = tarfile.TarInfo(ABOUT)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    (folder / "made").mkdir()
    path = folder / "made" / "environment.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(raw.getvalue()))
    return path


def _about_file(folder: Path) -> Path:
    from megatron_kaiyuan.staging.about import About

    return _file("about.json", About("f" * 32, "/opt/venv", "python3.11", 3).as_json())(folder)


def _read_archive(path: Path) -> Any:
    from megatron_kaiyuan.staging.about import read_about

    read_about(path)


def _read_about(path: Path) -> Any:
    from megatron_kaiyuan.staging.about import parse_about

    assert parse_about(path.read_bytes(), path).files >= 0


_TASK = {"path": "export", "name": "run, step 8", "seconds": 9.5, "tasks": {"arc": {"acc": 0.5, "alias": "arc"}}}
_ENTRY = {
    "model": {**_TASK, "held_out": {"nats_per_token": 5.0}},
    "baseline": {**_TASK, "held_out": None},
    "items": {"arc": 3},
    "made_from": {"model": "a", "held_out": "b", "arc": "c"},
}


def _add_to_results(path: Path) -> Any:
    from megatron_kaiyuan.evaluate.results import read_entries, replaced, with_entry

    entries = read_entries(path)
    new = json.loads(json.dumps(_ENTRY))
    replaced(entries, new)
    json.dumps(with_entry(entries, new))


TARGETS = (
    Target(
        "run-bad-nodes",
        _file("bad_nodes.json", {"hosts": ["node1", "n-2"], "why": "it hangs", "time": 1.7e9}),
        json_damage.plain,
        [_bad_nodes],
        lenient=True,
    ),
    Target("run-restarts", _file("restarts.json", {"restarts": 2}), json_damage.plain, [_restarts], lenient=True),
    Target(
        "run-first-failure",
        _file("first_failure.json", {"code": 134, "process": 7, "time": 1.7e9}),
        json_damage.plain,
        [_first_failure],
        lenient=True,
    ),
    Target(
        "run-results",
        _file("evaluation.json", {"format": "kaiyuan-evaluation", **_ENTRY, "others": [_ENTRY]}),
        json_damage.plain,
        [_add_to_results],
    ),
    Target("staging-about", _about_file, json_damage.plain, [_read_about]),
    Target("staging-archive", _archive, mutate, [_read_archive]),
)
