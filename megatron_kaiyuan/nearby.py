"""What lies at or near a path that is not what was asked for: the end of an error, which names the right one.

Nothing is taken in its place: only a suffix of a corpus's own files, which names the same corpus.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.paths import path_word, user_path

_MANIFEST = "manifest.json"
# Of a corpus's files; the first two name it in Megatron's own tools.
_SUFFIXES = (".idx", ".bin", ".meta.parquet", ".manifest.json")
_OF_A_RUN = ("metrics.jsonl", "checkpoints", "latest")
_MOST_NAMED = 4


def corpus_prefix(path: Path) -> Path:
    """The prefix of a corpus that is named by one of its files, else the path itself."""
    for suffix in _SUFFIXES:
        prefix = path.with_name(path.name.removesuffix(suffix)) if path.name != suffix else path
        if prefix != path and Path(f"{prefix}.idx").is_file():
            return prefix
    return path


def corpus_argument(text: str | Path) -> Path:
    """For `typer.Argument(parser=...)`: a corpus, or a folder that a command sealed (phase, documents).

    Raises:
        UserError: there is neither; it names those near it.
    """
    path = corpus_prefix(user_path(text))
    if Path(f"{path}.idx").is_file() or Path(f"{path}.manifest.json").is_file() or (path / _MANIFEST).is_file():
        return path
    raise UserError(f"{path}: corpus not found; name it without .bin or .idx{near_corpus(path)}")


def corpus_word(word: str) -> str:
    """For `typer.Option(parser=...)`: a corpus with `NAME=` before it or not, named by one of its files or not."""
    name, equals, path = path_word(word).rpartition("=")
    return f"{name}{equals}{corpus_prefix(Path(path))}"


def near_corpus(prefix: Path) -> str:
    """Corpora below a folder, or of a name that is nearly the prefix's."""
    if prefix.is_dir():
        return _held([*_prefixes(prefix.glob("*.idx")), *_sealed(prefix)])
    return _nearest(prefix, _prefixes(prefix.parent.glob("*.idx")))


def near_phase(folder: Path) -> str:
    """Phases below a folder or beside it; or that it is a corpus."""
    if corpus_prefix(folder) != folder or Path(f"{folder}.idx").is_file():
        return "; it is a corpus: an order recipe makes phases of corpora"
    if folder.is_dir() and (below := _sealed(folder)):
        return _held(below)
    return _nearest(folder, _sealed(folder.parent))


def near_run(path: Path) -> str:
    """The run that a path lies in, or runs below it or beside it."""
    if run := next((parent for parent in path.parents if parent != Path() and _is_run(parent)), None):
        return f"; it belongs to the run {run}"
    if path.is_dir() and (below := [folder for folder in path.iterdir() if _is_run(folder)]):
        return _held(below)
    return _nearest(path, [folder for folder in path.parent.glob("*") if _is_run(folder)])


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OF_A_RUN)


def _sealed(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"*/{_MANIFEST}")]


def _prefixes(files: Iterable[Path]) -> list[Path]:
    return [file.with_suffix("") for file in files]


def _nearest(path: Path, there: list[Path]) -> str:
    """Names that begin as this one does, then those that are nearly it."""
    names = {found.name: found for found in there if found != path}
    longer = sorted(name for name in names if name.startswith(path.name))
    near = longer or difflib.get_close_matches(path.name, list(names), n=1, cutoff=0.7)
    return f"; did you mean {names[near[0]]}?" if near else ""


def _held(there: list[Path]) -> str:
    if not there:
        return ""
    names = sorted(map(str, there))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"; it holds {', '.join(names[:_MOST_NAMED])}{more}"
