"""Which pinned packages have a wheel for aarch64, the processors of Ascend hosts, on PyPI.

    python tests/helpers/aarch64_wheels.py [requirements.txt ...]

A table of the wheel of each package for CPython 3.11 and the oldest glibc that it runs on. Exit code 1: one has none.
The index is asked once for each package (the JSON form of the simple API); nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYTHON = (3, 11)
# Of openEuler 24.03; what is older is named in the table.
NEWEST_GLIBC = 38
ANY, NONE = "any", "**none**"


def requirements(path: Path) -> Iterator[Requirement]:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text and not text.startswith("-"):
            yield Requirement(text)


def supported() -> frozenset[Tag]:
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(NEWEST_GLIBC, 16, -1)]
    platforms += ["manylinux2014_aarch64", "linux_aarch64"]
    return frozenset(cpython_tags(PYTHON, platforms=platforms)) | frozenset(
        compatible_tags(PYTHON, interpreter="cp311", platforms=platforms)
    )


def files(name: str) -> list[str]:
    """Names of all files of a package, of all versions."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    request = urllib.request.Request(
        f"{index}/{canonicalize_name(name)}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [file["filename"] for file in json.load(answer)["files"]]


def glibc_of(wheel: str) -> str:
    minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_aarch64", wheel)]
    minors += [17] * ("manylinux2014_aarch64" in wheel)
    return f"2.{min(minors)}" if minors else ANY


def describe(name: str, version: Version, tags: frozenset[Tag]) -> tuple[str, str]:
    """(kind of the file, glibc)."""
    has_source, found = False, []
    for file in files(name):
        # Names of some old releases follow no rule.
        with contextlib.suppress(InvalidSdistFilename, InvalidWheelFilename):
            if file.endswith((".tar.gz", ".zip")):
                has_source |= parse_sdist_filename(file)[1] == version
            elif file.endswith(".whl"):
                _, of, _, its = parse_wheel_filename(file)
                if of == version and its & tags:
                    found.append(file)
    if not found:
        return ("source only" if has_source else NONE), NONE
    compiled = [file for file in found if glibc_of(file) != ANY]
    return ("compiled", min(map(glibc_of, compiled))) if compiled else ("pure Python", ANY)


def main(paths: list[Path]) -> int:
    tags, without = supported(), []
    print("| package | wheel | glibc at least |\n|---|---|---|")
    for path in paths:
        for one in requirements(path):
            (version,) = [Version(item.version) for item in one.specifier]
            kind, glibc = describe(one.name, version, tags)
            print(f"| {one.name} {version} | {kind} | {glibc} |", flush=True)
            if glibc == NONE:
                without.append(one.name)
    if without:
        print(f"without a wheel: {', '.join(without)}", file=sys.stderr)
    return bool(without)


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or [ROOT / "requirements.txt"]))
