"""What is wrong in the environment of this interpreter: pins that are not met, extensions that do not load.

    python -I launch/check_env.py [--broken] requirements.txt ...

A line each; exit code 1 when there is one. --broken: only the pins of packages whose files are gone although pip takes
them for installed, as pip can read them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

# pip is in every virtual environment, and `packaging` in none at first.
from pip._vendor.packaging.requirements import Requirement

EXTENSIONS = (
    "data_tools._curriculum",
    "data_tools._dedup",
    "data_tools._index",
    "data_tools._scores",
    "megatron_kaiyuan.data._reader",
)


def pins(files: list[str]) -> Iterator[Requirement]:
    """Requirements that hold on this machine."""
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            text = line.partition(" #")[0].strip()
            if text and not text.startswith(("#", "-")):
                one = Requirement(text)
                if one.marker is None or one.marker.evaluate():
                    yield one


def is_whole(found: Distribution) -> bool:
    """Whether the files and folders at the top of what was installed are there.

    All of them would take a second, for torch alone.
    """
    record = found.read_text("RECORD") or ""
    tops = {line.split(",")[0].split("/")[0] for line in record.splitlines()}
    return all(found.locate_file(top).exists() for top in tops if top)


def find(one: Requirement) -> Distribution | None:
    try:
        return distribution(one.name)
    except PackageNotFoundError:
        return None


def problem_of(one: Requirement) -> str | None:
    found = find(one)
    if found is None:
        return f"{one.name} is missing"
    if not one.specifier.contains(found.version, prereleases=True):
        return f"{one.name} is {found.version}, not {str(one.specifier).lstrip('=')}"
    return None if is_whole(found) else f"{one.name} is installed, and its files are gone"


def problems(files: list[str]) -> Iterator[str]:
    yield from filter(None, map(problem_of, pins(files)))
    for name in EXTENSIONS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            yield f"{name} does not load ({error})"


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--broken"]:
        found = [str(one) for one in pins(arguments[1:]) if (its := find(one)) and not is_whole(its)]
    else:
        found = list(problems(arguments))
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
