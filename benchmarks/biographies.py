"""Biographies of people who do not exist: facts that a network can only know by remembering them.

After the biographies of Allen-Zhu and Li (arXiv 2309.14316) and of arXiv 2505.18091: each person has a name and six
attributes, drawn evenly and independently, so that the bits to know follow from the draw. A text gives all six
in a random order, each in one of three ways; a person has 720 * 3^6 texts, so that a text is hardly ever seen twice.
Words are made of syllables, and each has one meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_NAMES, _DAYS = 1024, 28
# Of each attribute, how many values there are.
CHOICES = {
    "birthday": len(_MONTHS) * _DAYS,
    "birthplace": 16,
    "university": 16,
    "major": 16,
    "employer": 16,
    "workplace": 16,
}
BITS = sum(math.log2(choices) for choices in CHOICES.values())
WAYS = {
    "birthday": ("{} was born on {}.", "{} arrived on {}.", "{} came on {}."),
    "birthplace": ("{} was born in {}.", "{} grew up in {}.", "{} is from {}."),
    "university": ("{} studied at {}.", "{} graduated from {}.", "{} went to {}."),
    "major": ("{} majored in {}.", "{} learned about {}.", "{} knows much of {}."),
    "employer": ("{} works for {}.", "{} is paid by {}.", "{} serves {}."),
    "workplace": ("{} lives in {}.", "{} has an office in {}.", "{} works in {}."),
}


@dataclass(frozen=True)
class Person:
    """A name, and a value for each attribute of `CHOICES`."""

    name: str
    values: dict[str, str]


def people(count: int, seed: int) -> list[Person]:
    """Different people.

    Raises:
        ValueError: more than there are names.
    """
    if count > _NAMES:
        raise ValueError(f"{count} people: there are {_NAMES} names")
    words = _words()
    names = [next(words) for _ in range(_NAMES)]
    values = {
        attribute: [next(words) for _ in range(choices)]
        for attribute, choices in CHOICES.items()
        if attribute != "birthday"
    }
    values["birthday"] = [f"{month} {day + 1}" for month in _MONTHS for day in range(_DAYS)]
    drawn = np.random.default_rng(seed)
    return [
        Person(
            names[at],
            {attribute: str(drawn.choice(values[attribute])) for attribute in CHOICES},
        )
        for at in drawn.permutation(_NAMES)[:count]
    ]


def with_wrong_values(of: Sequence[Person]) -> list[Person]:
    """The same names, each with the values of the next person: all words are as frequent as before."""
    return [replace(person, values=other.values) for person, other in zip(of, [*of[1:], of[0]], strict=True)]


def texts(of: Sequence[Person], count: int, seed: int) -> list[str]:
    """So many texts, about the people in turn. Orders and ways follow from the seed alone, not from the people."""
    drawn = np.random.default_rng(seed)
    return [_text(of[at % len(of)], drawn) for at in range(count)]


def _text(person: Person, drawn: np.random.Generator) -> str:
    sentences = []
    for attribute in drawn.permutation(list(CHOICES)):
        sentences.append(str(drawn.choice(WAYS[attribute])).format(person.name, person.values[attribute]))
    return " ".join(sentences)


def _words() -> Iterator[str]:
    """Made-up words of two syllables, no word twice."""
    pairs = [one + two for one in _SYLLABLES for two in _SYLLABLES]
    return (pairs[at].capitalize() for at in np.random.default_rng(0).permutation(len(pairs)))
