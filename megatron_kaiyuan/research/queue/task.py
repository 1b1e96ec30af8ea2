"""A run with its fingerprint, its place, and its result once it is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.config import RunConfig, check_world_size, load_run
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.cloze import read_task
from megatron_kaiyuan.files import checksum, read_sealed_json, remove
from megatron_kaiyuan.forms import Count, Form, require_form
from megatron_kaiyuan.outputs import files_identity, identity_of
from megatron_kaiyuan.research.queue.request import BITS_PER_BYTE, COLUMNS, Run
from megatron_kaiyuan.versions import versions

RESULT, LOG = "result.json", "log.txt"
FORMAT = "kaiyuan-run-result"
# Exit code of a run's process that found another one at work on the run (sysexits.h: EX_TEMPFAIL).
ELSEWHERE = 75
# A run of minutes is not worth a checkpoint each few steps; a recipe's own choice is for long runs.
_CHECKPOINTS = (
    "checkpoint.save_every_steps=1000000000",
    "checkpoint.save_every_minutes=5",
    "checkpoint.keep_last=2",
    "checkpoint.keep_every_steps=null",
    "checkpoint.keep_every_tokens=null",
)
# Sections that change no result, and what is compared by content instead.
# What decides which ids a text becomes.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_LEFT_OUT = ("run_dir", "platform", "init_from", "data", "checkpoint", "monitor")


class _Result(Form):
    model_config = ConfigDict(extra="ignore")
    format: str
    fingerprint: str
    bits_per_byte: dict[str, float]
    steps: Count | None = None
    tokens: Count | None = None
    parameters: Count | None = None
    seconds: float | None = None
    training_seconds: float | None = None


@dataclass(frozen=True)
class ReadyRun:
    """A run that is ready to be trained.

    Attributes:
        platform: that it is trained on: `cpu`, `cuda` or `npu`.
        fingerprint: of all that decides its result.
        config: with `folder` as its run_dir.
    """

    run: Run
    platform: str
    fingerprint: str
    config: RunConfig
    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f".{self.fingerprint}.lock")

    @property
    def log(self) -> Path:
        return self.folder / LOG

    def result(self) -> dict[str, Any] | None:
        """What the run reached; None: it is not whole.

        Raises:
            UserError: the file is damaged, or is that of something else.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        result = read_sealed_json(path, "result of a run")
        if result.get("format") != FORMAT or result.get("fingerprint") != self.fingerprint:
            raise UserError(f"{path}: is not the result of this run; move {self.folder} away, and it is trained again")
        form = require_form(path, result, _Result, f"move {self.folder} away, and it is trained again")
        return form.model_dump(exclude_unset=True)

    @property
    def is_done(self) -> bool:
        """The run is whole, and its checkpoints are gone."""
        return self.result() is not None and not layout.checkpoints_folder(self.folder).exists()

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a whole run, and nothing else. The caller holds the lock."""
        for step in layout.all_steps(self.folder):
            remove(layout.step_folder(self.folder, step))
        remove(self.folder / "latest")
        folder = layout.checkpoints_folder(self.folder)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class Tasks:
    """Makes tasks of runs; phases and corpora that several runs share are opened once.

    Args:
        folder: of the queue.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._opened: dict[Path, IndexedCorpus] = {}
        self._phases: dict[Path, dict[str, Any]] = {}
        self._corpora: dict[Path, list[str]] = {}
        self._tasks: dict[Path, str] = {}
        self._versions = versions()

    def load(self, run: Run) -> RunConfig:
        """The configuration of a run, without its place.

        Raises:
            UserError: recipe or an override is wrong, or wants several processes; the message names the run.
        """
        with _about(run):
            config = load_run(run.recipe, [*_CHECKPOINTS, *run.overrides, "run_dir=unknown"])
            check_world_size(config, 1)
            return config

    def make(self, run: Run, config: RunConfig, platform: str) -> ReadyRun:
        """Find a run's fingerprint and its place.

        Raises:
            UserError: a phase or a held-out corpus is missing or damaged; the message names the run.
        """
        with _about(run):
            fingerprint = identity_of(self._content(run, config, platform))
        place = self._folder / "runs" / fingerprint
        return ReadyRun(run, platform, fingerprint, config.model_copy(update={"run_dir": place}), place)

    def _content(self, run: Run, config: RunConfig, platform: str) -> dict[str, Any]:
        fields = config.model_dump(mode="json")
        data = fields["data"]
        schedules = [{name: value for name, value in phase.items() if name != "path"} for phase in data["phases"]]
        return {
            "platform": platform,
            "versions": self._versions,
            "fields": {name: value for name, value in fields.items() if name not in _LEFT_OUT},
            "data": {**data, "phases": schedules},
            "phases": [self._phase(phase.path) for phase in config.data.phases],
            "init_from": files_identity([config.init_from]) if config.init_from else None,
            "held_out": {domain: self._corpus(prefix) for domain, prefix in sorted(run.held_out.items())},
            "held_out_tokens": run.held_out_tokens,
            **({"tasks": self._cloze(run, run.tokenizer)} if run.tasks and run.tokenizer else {}),
        }

    def _phase(self, folder: Path) -> dict[str, Any]:
        if folder not in self._phases:
            identity = Phase(folder, check=None, opened=self._opened).identity()
            # What a phase is called, and how its corpora are, decides nothing.
            corpora = [list(identity[name].values()) for name in ("corpora", "samples")]
            self._phases[folder] = {**identity, "name": None, "corpora": corpora[0], "samples": corpora[1]}
        return self._phases[folder]

    def _corpus(self, prefix: Path) -> list[str]:
        if prefix not in self._corpora:
            corpus = IndexedCorpus(prefix)
            self._corpora[prefix] = [corpus.fingerprint(), corpus.sample_fingerprint()]
        return self._corpora[prefix]

    def _cloze(self, run: Run, tokenizer: Path) -> dict[str, Any]:
        """Tasks by what is scored, and what scores it."""
        for path in run.tasks.values():
            if path not in self._tasks:
                self._tasks[path] = read_task(path).identity
        files = [tokenizer / name for name in _TOKENIZER_FILES]
        return {
            "items": {name: self._tasks[path] for name, path in sorted(run.tasks.items())},
            "tokenizer": [checksum(file) for file in files if file.is_file()],
            "versions": [version(package) for package in ("lm_eval", "transformers", "tokenizers")],
        }


@contextlib.contextmanager
def _about(run: Run) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"run {run.name!r}: {error}") from error


def row_of(task: ReadyRun, result: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table: name, labels, then what the run reached."""
    reached = {name: result[name] for name in COLUMNS if name in result}
    bits = {f"{BITS_PER_BYTE}{domain}": value for domain, value in result["bits_per_byte"].items()}
    return {"name": task.run.name, **task.run.labels, **reached, **bits}
