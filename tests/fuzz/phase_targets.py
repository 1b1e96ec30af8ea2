"""Phases: the manifest, the profile, and the binary files under a manifest whose checksums fit them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from megatron_kaiyuan.files import checksum
from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate
from tests.helpers.files.phase_files import write_pair
from tests.helpers.files.small_corpora import write_corpus


def make_phase(folder: Path, pack: int | None = None) -> Path:
    """A phase of two corpora, of which the second one is a pair without a manifest; returns its folder."""
    from data_tools.curriculum.build import build_recipe

    write_corpus(folder / "web", [[5, 6, 7], [8], [9, 10], [11] * 5], {"score": [0.1, 0.9, 0.4, 0.3]})
    write_pair(folder / "code", [[1, 2], [3], [4, 5, 6]])
    recipe = {
        "corpora": {"web": str(folder / "web"), "code": str(folder / "code")},
        "phases": [
            {
                "name": "first",
                "order": "shuffle" if pack else "curriculum",
                **({"pack": pack} if pack else {}),
                "datasets": [{"corpus": "web", "score": "score"}, {"corpus": "code", "repeat": 2}],
            }
        ],
    }
    (folder / "order.yaml").write_text(yaml.safe_dump(recipe))
    with contextlib.redirect_stdout(io.StringIO()):
        build_recipe(folder / "order.yaml", [], folder / "phases", None, 1)
    return folder / "phases" / "first"


def _manifest(pack: int | None = None) -> Callable[[Path], Path]:
    return lambda folder: make_phase(folder, pack) / "manifest.json"


def _file(name: str, pack: int | None = None) -> Callable[[Path], Path]:
    return lambda folder: make_phase(folder, pack) / name


def read_stream(path: Path) -> Any:
    """All that training reads."""
    from megatron_kaiyuan.data.stream import TokenStream

    stream = TokenStream([path.parent], 1000)
    (phase,) = stream.phases
    phase.check(lengths=True)
    tokens = stream.read(0, phase.tokens)
    return tokens.tolist(), phase.tokens, phase.documents, phase.entries


def _verify(path: Path) -> Any:
    from data_tools.curriculum.verify import verify_phase

    # Not fast where the manifest's checksums say more than the reader looks at.
    verify_phase(path.parent, fast=path.stat().st_size % 2 == 0)


def _report(path: Path) -> Any:
    from megatron_kaiyuan.pages.phase_mixes import read_phases, stream_tables

    json.dumps(stream_tables(read_phases([path.parent])), allow_nan=False)


def _earlier(path: Path) -> Any:
    from data_tools.curriculum.build import earlier_phase
    from megatron_kaiyuan.outputs import Output

    earlier_phase(Output(path.parent, "a phase"))


def _materialize(path: Path) -> Any:
    from data_tools.curriculum.materialize import materialize

    output = path.parent.parent.with_name("pair")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    materialize(path.parent, output / "all", "tokens")


def _first(path: Path) -> Any:
    """What a portrait of a window is made from."""
    from data_tools.windows.portraits import _first_documents

    _first_documents(path.parent, 5)


def _seal(path: Path) -> None:
    """Let the manifest fit a changed file."""
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_bytes())
    content["files"][path.name] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    manifest.write_bytes(json_damage.seal({name: value for name, value in content.items() if name != "seal"}))


TARGETS = (
    Target("phase-manifest", _manifest(), json_damage.sealed, [read_stream, _verify, _earlier]),
    Target("phase-manifest-packed", _manifest(8), json_damage.sealed, [read_stream, _report]),
    Target("phase-profile", _file("profile.json"), json_damage.plain, [_report]),
    Target("phase-order", _file("order.bin"), mutate, [read_stream, _materialize, _first], _seal),
    Target("phase-tokens", _file("tokens.bin"), mutate, [read_stream], _seal),
    Target("phase-checks", _file("checks.bin"), mutate, [read_stream], _seal),
    Target("phase-pieces", _file("pieces.bin", 8), mutate, [read_stream], _seal),
)
