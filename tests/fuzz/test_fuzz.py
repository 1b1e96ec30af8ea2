"""Every reader with a few damaged files; thousands of them by hand: `python -m tests.fuzz --rounds 10000`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.target import Target, run
from tests.fuzz.targets import TARGETS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_refused_in_one_line_or_read_right(target: Target, outcomes: dict[str, Any]) -> None:
    assert outcomes[target.name]["faults"] == []
    assert outcomes[target.name]["refused"] > 0 or target.lenient, "the damage does nothing"


def test_a_reader_that_fails_is_found(tmp_path: Path) -> None:
    """A trace, a wrong answer, an abort and a file that is not named."""

    def make(folder: Path) -> Path:
        (folder / "number.txt").write_bytes(b"7")
        return folder / "number.txt"

    def damage(raw: bytes, seed: int) -> bytes:
        return str(seed).encode()

    def read(path: Path) -> int:
        import os

        from megatron_kaiyuan.errors import UserError

        number = int(path.read_text())
        if number == 1:
            raise KeyError("one")
        if number == 2:
            os.abort()
        if number == 3:
            raise UserError("it is three")
        if number == 4:
            raise UserError(f"{path}: it is four")
        return 7 if number == 5 else number

    outcome = run(Target("numbers", make, damage, [read]), tmp_path / "files", range(1, 8))
    assert [seed for seed, _ in outcome.faults] == [1, 2, 3, 6]
    texts = [text for _, text in outcome.faults]
    assert texts[0].startswith("KeyError at test_fuzz.py") or texts[0].startswith("KeyError at ?")
    assert "died" in texts[1] and "does not name the file" in texts[2] and "gives 6 instead of 7" in texts[3]
    assert (outcome.accepted, outcome.refused) == (2, 1)
