"""Biographies with nothing but their facts to tell people apart, and the way from texts to the detector's answer."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import knowledge_jump
from benchmarks.biographies import BITS, CHOICES, WAYS, people, texts, with_wrong_values
from benchmarks.jump_alarms import CURVES, simulated
from megatron_kaiyuan.research.mixture.reach import FEWEST_RUNS_FOR_JUMPS

SHARES = [round(0.05 + 0.07 * at, 2) for at in range(FEWEST_RUNS_FOR_JUMPS)]


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--folder", str(folder), "--slots", "1", *more]


def test_people_have_names_of_their_own_and_values_drawn_evenly() -> None:
    known = people(600, seed=1)
    assert len({person.name for person in known}) == 600 and known == people(600, seed=1) != people(600, seed=2)
    entropies: list[float] = []
    for attribute, choices in CHOICES.items():
        counts = np.array(list(Counter(person.values[attribute] for person in known).values()))
        assert len(counts) <= choices
        entropies.append(-np.sum(counts / 600 * np.log2(counts / 600)))
    # 600 people do not fill 336 birthdays evenly; the entropy of a sample lies below that of the draw.
    assert BITS - 1 < sum(entropies) < BITS == math.log2(336) + 5 * 4
    with pytest.raises(ValueError, match="1025 people: there are 1024 names"):
        people(1025, seed=1)


def test_exchanged_values_change_nothing_but_who_has_what() -> None:
    known = people(40, seed=1)
    right, wrong = texts(known, 80, seed=2), texts(with_wrong_values(known), 80, seed=2)
    words = [Counter(" ".join(of).replace(".", "").split()) for of in (right, wrong)]
    # Each round of all people has its own orders and ways; values are those of the next person in the same ways.
    assert words[0] == words[1]
    for one, other in zip(right, wrong, strict=True):
        assert one.split()[0] == other.split()[0] and one.count(".") == other.count(".") == len(WAYS)
    assert right != wrong and len(set(texts(known, 400, seed=3))) == 400


def test_from_texts_to_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks of four steps know nothing: no jump, and 0 bits that are known, whatever the share."""
    shares = list(map(str, SHARES))
    more = ["--hidden", "8", "--people", "8", "--tokens", "2048", "--shares", *shares]
    knowledge_jump.main(arguments(tmp_path, *more))
    printed = capsys.readouterr().out
    assert "detector on people: no jump" in printed and "known from a share of None" in printed
    lines = [line.split() for line in printed.splitlines() if line.startswith("  0.")]
    assert [float(line[0]) for line in lines] == SHARES
    assert all(abs(float(line[1])) < 0.5 and float(line[2]) > 1 for line in lines)


def test_what_is_known_from_which_share_on() -> None:
    rows = [{"share": share, "known": known} for share, known in ((0.1, 0.2), (0.2, 1.2), (0.4, 27.2), (0.5, 40.0))]
    assert knowledge_jump.jump_at(rows) == pytest.approx(0.2 + 0.2 * (BITS / 2 - 1.2) / 26)
    assert knowledge_jump.jump_at(rows[:2]) is None
    assert "parameters ^ -1.00" in knowledge_jump.moves([100, 200, 400], [0.4, 0.2, 0.1])
    assert "cannot be said" in knowledge_jump.moves([100, 200], [0.4, None])


def test_a_jump_in_simulated_runs_and_none_in_ordinary_curves() -> None:
    found, _ = zip(*(simulated(CURVES["jump"], 4, 48, seed) for seed in range(3)), strict=True)
    assert sum(found) >= 2
    others = [simulated(CURVES[name], 2, 24, seed) for name in ("straight", "law", "power law") for seed in range(4)]
    assert sum(map(any, others)) <= 1


@pytest.mark.slow
def test_a_network_knows_people_above_the_jump_and_nobody_below(tmp_path: Path) -> None:
    given = knowledge_jump.parse(arguments(tmp_path, "--hidden", "64", "--shares", "0.05", "0.6"))
    below, above = knowledge_jump.train(tmp_path, given)
    assert abs(below["known"]) < 1 and above["known"] > BITS / 2
    # The price is paid by the other text.
    assert above["people"] < below["people"] and above["english"] > below["english"]
