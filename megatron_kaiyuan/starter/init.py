"""`kaiyuan init`: a folder with recipes, and with the launch scripts and pages that a wheel carries inside."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, remove_leftovers
from megatron_kaiyuan.outputs import Output, claim, identity_of
from megatron_kaiyuan.starter.corpora import Corpus, check_apart, open_corpora, vocabulary
from megatron_kaiyuan.starter.shipped import shipped
from megatron_kaiyuan.starter.sizes import size_for

# Of launch/, what starts jobs of an installed package. The others set up the project itself, or show it.
SCRIPTS = (
    *("common.sh", "env_ascend.sh", "env_nccl.sh"),
    *("train.sh", "torchrun.sh", "mpirun.sh", "msrun.sh", "slurm.sbatch", "spark_submit.sh", "acceptance.sh"),
    "stage_env.sh",
    "k8s/jobset.yaml",
    "k8s/pytorchjob.yaml",
    "k8s/trainjob.yaml",
)
# Where launch/common.sh looks for a Python that has the project.
ENVIRONMENT = "launch/environment"

Files = dict[str, bytes]


def init(folder: Path, words: Sequence[str], preset: str, score: str, held_out_words: Sequence[str] = ()) -> str:
    """Write a folder to begin in, and say what to do there.

    Args:
        words: corpora as NAME=PREFIX; none: the recipe names one that is still to be made.
        score: column that documents are ranked by where a corpus has it.
        held_out_words: corpora as NAME=PREFIX, a domain each, that the network predicts while it trains.

    Raises:
        UserError: a corpus cannot be used, or the folder holds a file of that name with another content; then nothing
            is written.
    """
    folder = Path(os.path.abspath(folder))
    corpora = open_corpora(words, score)
    held_out = open_corpora(held_out_words, score, "--held-out")
    check_apart(corpora, held_out)
    files = {**recipes(folder, corpora, held_out, preset, score), **_installed()}
    output = Output(folder, "a folder that `kaiyuan init` wrote", "DIR")

    def refuse_others(output: Output) -> None:
        for name, content in files.items():
            path = output.path / name
            if path.exists() and (not path.is_file() or path.read_bytes() != content):
                raise output.in_the_way(path, "exists with another content")

    with claim(output, identity_of(sorted(files)), refuse_others):
        for name, content in files.items():
            _write(folder / name, content)
    return "\n".join([f"init: {len(files)} files in {folder}", *_next_steps(folder, corpora)])


def recipes(folder: Path, corpora: Sequence[Corpus], held_out: Sequence[Corpus], preset: str, score: str) -> Files:
    """order.yaml and train.yaml; paths in them are absolute, so that they hold from any folder."""
    tokens = sum(one.tokens for one in corpora)
    ids = vocabulary(corpora, held_out)
    values: dict[str, Any] = {
        "folder": folder,
        "known": bool(corpora),
        "corpora": corpora or [Corpus("web", folder / "corpora" / "web_text_document")],
        "held_out": held_out,
        "scored": any(one.has_score for one in corpora),
        "score": score,
        "preset": preset,
        "vocab_size": ids,
        "tokens": tokens,
        "size": size_for(preset, tokens),
        # JSON is YAML; `shell` for commands in comments.
        "quoted": lambda value: json.dumps(str(value), ensure_ascii=False),
        "shell": lambda value: shlex.quote(str(value)),
    }
    templates = Environment(
        loader=PackageLoader("megatron_kaiyuan.starter", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return {name: templates.get_template(f"{name}.j2").render(values).encode() for name in ("order.yaml", "train.yaml")}


def _installed() -> Files:
    """Scripts, the recipes that examples name, and the pages."""
    files = {f"launch/{name}": _read(shipped("launch") / name) for name in SCRIPTS}
    for place, name in ((shipped("launch") / "recipes", "launch/recipes"), (shipped("docs"), "docs")):
        found = [path for path in sorted(place.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
        files.update({f"{name}/{path.relative_to(place)}": _read(path) for path in found})
    return {**files, ENVIRONMENT: f"{Path(sys.executable).parent}\n".encode()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing from this installation; install the project again") from error


def _write(path: Path, content: bytes) -> None:
    remove_leftovers(path)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as new:
        new.write_bytes(content)
        if content.startswith(b"#!"):
            new.chmod(new.stat().st_mode | 0o111)


def _next_steps(folder: Path, corpora: Sequence[Corpus]) -> Iterator[str]:
    def place(name: str) -> str:
        return shlex.quote(str(folder / name))

    if not corpora:
        yield f"make the corpus that {place('order.yaml')} names (its first lines say how), then"
    yield f"  kaiyuan-data curriculum {place('order.yaml')} --output {place('phases')}"
    yield f"  {place('launch/train.sh')} {place('train.yaml')}"
