"""What `kaiyuan-data quantile` is asked: corpora by name, their scores, the budget."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.corpora.corpus_files import manifest_path
from data_tools.curriculum.amounts import read_tokens
from data_tools.curriculum.recipe import DatasetRecipe
from data_tools.scores.portrait import READ
from data_tools.steps.datasets import NAMED
from data_tools.tokenizers.decoding import CorpusText
from data_tools.windows.targets import WIDTH, TargetWindow
from megatron_kaiyuan.data.indexed import IndexedCorpus, idx_path
from megatron_kaiyuan.errors import UserError, require_between
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.outputs import identity_of

_POLICIES = ("refuse", "drop", "lowest")


@dataclass(frozen=True)
class WindowOptions:
    """Which windows are cut, and how.

    Attributes:
        scores: a column for all datasets, or `NAME=COLUMN` for each.
        tops, width, windows, by: see `read_targets`.
        tokens: of every phase, as `2M`; None: what the smallest window holds.
        repeat: windows with fewer tokens are repeated.
        missing_scores: what becomes of documents without a score.
        seed: of the draws between equal scores, and of the order of the phases.
        samples: beginnings of documents in each portrait; None: no portraits.
        tokenizer: of the corpora, if not where their manifests say.
    """

    scores: Sequence[str]
    tops: Sequence[str] = ()
    width: str = WIDTH
    windows: Sequence[str] = ()
    by: str = "documents"
    tokens: str | None = None
    repeat: bool = False
    missing_scores: str = "refuse"
    seed: int = 1234
    samples: int | None = 3
    tokenizer: Path | None = None


def asked_tokens(options: WindowOptions) -> int | None:
    """The budget that is asked for; None: the smallest window's.

    Raises:
        UserError: an option is wrong.
    """
    require_between("--seed", options.seed, 0, 2**63 - 1)
    if options.samples is not None:
        require_between("--samples", options.samples, 0, READ)
    if options.missing_scores not in _POLICIES:
        raise UserError(f"--missing-scores {options.missing_scores}: write one of {', '.join(_POLICIES)}")
    if options.tokens is None:
        return None
    try:
        found = read_tokens(options.tokens)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    return None if found == "all" else found


def find_corpora(words: Sequence[str], options: WindowOptions) -> list[tuple[DatasetRecipe, Path]]:
    """The datasets as an order recipe has them, and their prefixes.

    Raises:
        UserError: a name is used twice, a dataset has no score, or a corpus or its tokenizer is not there.
    """
    named = dict(_named(words))
    if len(named) < len(words):
        raise UserError(f"quantile: two of {' '.join(words)} have one name; write NAME=PREFIX")
    columns = _columns(options.scores, list(named))
    found = []
    for name, prefix in named.items():
        if not idx_path(prefix).is_file():
            raise UserError(
                f"{idx_path(prefix)}: not found; name a corpus without .bin or .idx, as NAME=PREFIX or PREFIX"
            )
        if not manifest_path(prefix).is_file():
            raise UserError(f"{manifest_path(prefix)}: not found, so the corpus has no scores; make it with preprocess")
        if options.samples is not None:
            CorpusText(prefix, options.tokenizer)  # refused now, not after the work
        recipe = {"corpus": name, "score": columns[name], "missing_scores": options.missing_scores}
        found.append((DatasetRecipe.model_validate(recipe), prefix))
    return found


def _named(words: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for word in words:
        match = None if idx_path(Path(word)).is_file() else NAMED.fullmatch(word)
        name, prefix = (match[1], Path(match[2])) if match else (Path(word).name, Path(word))
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(
                f"quantile: {word}: a folder gets the name {name!r}; write NAME=PREFIX, of letters and digits"
            )
        yield name, prefix


def _columns(scores: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The score of each dataset."""
    found = {name: word for word in scores if "=" not in word for name in names}
    for word in scores:
        name, equals, column = word.partition("=")
        if equals and name not in names:
            raise UserError(f"--score {word}: there is no dataset {name!r}; there are {', '.join(names)}")
        if equals:
            found[name] = column
    if len(scores) > 1 and sum("=" not in word for word in scores) > 1:
        raise UserError(f"--score {' '.join(scores)}: name one column, or NAME=COLUMN for each dataset")
    if without := [name for name in names if not found.get(name)]:
        raise UserError(f"--score: dataset {without[0]!r} has none; name its column as {without[0]}=COLUMN")
    return found


def windows_identity(
    corpora: Sequence[tuple[DatasetRecipe, Path]], options: WindowOptions, targets: Sequence[TargetWindow]
) -> str:
    """What the windows are made from: the tokens and scores of each corpus, and the options."""
    made_of = [
        [
            recipe.corpus,
            recipe.score,
            IndexedCorpus(prefix, check=None).sample_fingerprint(),
            checksum(manifest_path(prefix)),
        ]
        for recipe, prefix in corpora
    ]
    settings = [options.tokens, options.repeat, options.missing_scores, options.seed, options.samples]
    return identity_of("windows", made_of, [target.keep for target in targets], settings)
