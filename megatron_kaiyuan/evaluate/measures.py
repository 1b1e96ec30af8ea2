"""What an evaluation measures, and the identity of each measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_kaiyuan.data.indexed import idx_path
from megatron_kaiyuan.evaluate.results import HELD_OUT
from megatron_kaiyuan.evaluate.task_selection import TaskSelection, require_tasks
from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING, TaskSizes, read_domains
from megatron_kaiyuan.outputs import files_identity, identity_of


@dataclass(frozen=True)
class Measures:
    """What an evaluation measures; at least one of the first three, or presets.

    Attributes:
        held_out: corpus prefixes, one for each domain.
        held_out_text: documents as JSON lines {"text", "domain", ...}, of which two tasks are made.
        tasks: of lm-eval, by name.
        seq_length: context in tokens; None: as in training, or all that an exported model admits.
        token_limit: predicted tokens at most of the held-out loss; None: all.
        sizes, seed: of the tasks that are made of held-out text.
        presets: more tasks of lm-eval, as `preset_selections` gives them.
    """

    held_out: Sequence[Path] = ()
    held_out_text: Sequence[Path] = ()
    tasks: TaskSelection = field(default_factory=lambda: TaskSelection(()))
    seq_length: int | None = None
    token_limit: int | None = 100_000
    sizes: TaskSizes = field(default_factory=TaskSizes)
    seed: int = 1234
    presets: Sequence[TaskSelection] = ()

    @property
    def held_out_identity(self) -> str:
        """What the held-out loss depends on besides the weights, with the state of all files."""
        return identity_of(_state(map(idx_path, self.held_out)), self.seq_length, self.token_limit)

    @property
    def text_identity(self) -> str:
        """Likewise for the tasks that are made of held-out text."""
        return identity_of(_state(self.held_out_text), self.seq_length, dataclasses.asdict(self.sizes), self.seed)

    @property
    def selections(self) -> list[TaskSelection]:
        """The tasks of lm-eval that are asked for by name; a task that a preset has too is measured as it is named."""
        named = [self.tasks] if self.tasks.names else []
        left = [tuple(name for name in one.names if name not in self.tasks.names) for one in self.presets]
        pairs = zip(self.presets, left, strict=True)
        return [*named, *(dataclasses.replace(one, names=names) for one, names in pairs if names)]

    def tasks_identity(self, selection: TaskSelection) -> str:
        """Likewise for each of some tasks of lm-eval."""
        folder = selection.include_path
        return identity_of(_state([folder] if folder else []), self.seq_length, selection.num_fewshot, selection.limit)

    def made_from(self) -> dict[str, str]:
        """The identity of each measure that is asked for by name, as results name it."""
        found = {HELD_OUT: self.held_out_identity} if self.held_out else {}
        found |= dict.fromkeys((ROLLING, CONTINUATION), self.text_identity) if self.held_out_text else {}
        for selection in self.selections:
            found |= dict.fromkeys(selection.names, self.tasks_identity(selection))
        return found

    def require_inputs(self) -> None:
        """Look for everything that is to be read, before hours are spent or a refusal sends the user elsewhere.

        Raises:
            UserError: a corpus, a text or a task is missing or wrong.
        """
        from megatron_kaiyuan.evaluate.heldout import open_corpora

        if self.held_out:
            open_corpora(self.held_out)
        if self.held_out_text:
            read_domains(self.held_out_text)
        for selection in self.selections:
            require_tasks(selection)


def _state(paths: Iterable[Path]) -> list[list[Any]]:
    return files_identity(path for path in paths if path.exists())
