"""docs/aarch64.md has a wheel for each run-time pin; tests/helpers/aarch64_wheels.py, which asks PyPI, renews it."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.version import Version

from tests.helpers.aarch64_wheels import glibc_of, requirements

ROOT = Path(__file__).parents[1]
# Of requirements-npu.txt's wheels, and of the oldest systems that docs/npu.md names.
GLIBC = Version("2.28")


def test_page_lists_the_pins() -> None:
    page = (ROOT / "docs" / "aarch64.md").read_text()
    rows = re.findall(r"^\| ([\w.-]+) (\S+) \| (compiled|pure Python) \| (any|2\.\d+) \|$", page, re.MULTILINE)
    pins = [(one.name, *(item.version for item in one.specifier)) for one in requirements(ROOT / "requirements.txt")]
    assert [(name, version) for name, version, *_ in rows] == pins and len(pins) > 30
    assert {name for name, _, _, glibc in rows if glibc != "any" and Version(glibc) > GLIBC} == set()


def test_oldest_glibc_of_a_wheel() -> None:
    assert glibc_of("numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl") == "2.27"
    assert glibc_of("orjson-3.13.0-cp311-cp311-manylinux2014_aarch64.whl") == "2.17"
    assert glibc_of("tqdm-4.70.1-py3-none-any.whl") == "any"
