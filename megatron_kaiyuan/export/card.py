"""The model card of an export, README.md: filled from the checkpoint, its run and what was measured of it.

Only what is recorded is said; a card names no place on this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import JsonValue

from megatron_kaiyuan.checkpoint.find import Found
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Form, require_form
from megatron_kaiyuan.network import count_parameters

# What of a recipe says how the model was trained; the other sections say where, and what was watched.
_RECIPE = ("train", "optimizer", "parallel")
_RESULTS = "evaluation.json"
_REMOTE_CODE = "trust_remote_code"


class _HeldOut(Form):
    nats_per_token: float


class _Measured(Form):
    name: str
    held_out: _HeldOut | None = None
    tasks: dict[str, dict[str, JsonValue]] = {}


class _Entry(Form):
    model: _Measured


class _Results(_Entry):
    others: list[_Entry] = []


def model_card(
    found: Found, model: ModelConfig, run: Mapping[str, Any], manifest: Mapping[str, Any], written_as: tuple[str, str]
) -> str:
    """Return the text of a card.

    Args:
        found: the checkpoint; in its run's folder lies `evaluation.json`.
        run: of the checkpoint's common state.
        manifest: of the checkpoint.
        written_as: format and dtype of the folder.

    Raises:
        UserError: `evaluation.json` is damaged.
    """
    sections = [
        _head(model),
        _about(found, model, manifest, written_as),
        _use(*written_as),
        _data(run),
        _recipe(run),
        _scores(found),
        _environment(run),
    ]
    return "\n".join(section for section in sections if section)


def _head(model: ModelConfig) -> str:
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["megatron-kaiyuan"]}
    size = _short(count_parameters(model))
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# A language model of {size} parameters\n"


def _about(found: Found, model: ModelConfig, manifest: Mapping[str, Any], written_as: tuple[str, str]) -> str:
    rows = {
        "parameters": f"{count_parameters(model):,}",
        "layers, width": f"{model.num_layers}, {model.hidden_size}",
        "heads, of keys and values, size": ", ".join(
            map(str, (model.num_attention_heads, model.num_query_groups, model.kv_channels))
        ),
        "context": f"{model.max_position_embeddings:,} tokens",
        "vocabulary": f"{model.vocab_size:,}, padded to {model.padded_vocab_size:,}",
        "format, weights": ", ".join(written_as),
        "weights of": found.what + _shares(manifest),
    }
    if manifest.get("tokens") is not None:
        rows["trained on"] = f"{manifest['tokens']:,} tokens"
    return _table(("", ""), rows.items())


def _shares(manifest: Mapping[str, Any]) -> str:
    """How much each step counts in an average."""
    weights = (manifest.get("average") or {}).get("weights", {})
    shares = ", ".join(f"{float(weight):.4g} of step {step}" for step, weight in weights.items())
    return f": {shares}" if shares else ""


def _use(written: str, dtype: str) -> str:
    own = written == "kaiyuan"
    text = f"""
## Use

```python
from transformers import pipeline

generate = pipeline("text-generation", FOLDER, dtype="{dtype}"{f", {_REMOTE_CODE}=True" if own else ""})
```
"""
    code = "\nIts class is `modeling_kaiyuan.py` in this folder, which needs torch and transformers only.\n"
    return text + (code if own else "")


def _data(run: Mapping[str, Any]) -> str:
    rows = [
        (phase["name"], f"{phase['tokens']:,}", ", ".join(phase.get("corpora") or ()))
        for phase in run.get("phases", ())
    ]
    if not rows:
        return ""
    names = "Phases in order, with the tokens that each one offers."
    return f"\n## Data\n\n{names}\n\n{_table(('phase', 'tokens', 'corpora'), rows)}"


def _recipe(run: Mapping[str, Any]) -> str:
    kept = {name: run["config"][name] for name in _RECIPE if name in run["config"]}
    if not kept:
        return ""
    phases = run["config"].get("data", {}).get("phases", ())
    rates = [{key: value for key, value in phase.items() if key != "path"} for phase in phases]
    text = yaml.safe_dump({**kept, **({"learning_rates_of_phases": rates} if rates else {})}, sort_keys=False)
    return f"\n## Recipe\n\n```yaml\n{text}```\n"


def _scores(found: Found) -> str:
    """What `kaiyuan eval` measured of this checkpoint, and of no other."""
    path = (found.run_dir or found.folder) / _RESULTS
    if not path.is_file():
        return ""
    results = require_form(path, read_json(path, "evaluation"), _Results, "move it away, or measure again")
    of_this = [entry.model for entry in (results, *results.others) if entry.model.name.endswith(f", {found.what}")]
    rows = []
    for measured in of_this[:1]:
        if measured.held_out:
            rows.append(("held-out loss", "nats a token", f"{measured.held_out.nats_per_token:.4f}"))
        for task, figures in measured.tasks.items():
            rows += [(task, name, f"{value:.4f}") for name, value in figures.items() if isinstance(value, float)]
    return f"\n## Scores\n\n{_table(('task', 'metric', 'value'), rows)}" if rows else ""


def _environment(run: Mapping[str, Any]) -> str:
    git = run.get("git") or {}
    rows = {**run.get("versions", {}), "ranks": run.get("world_size"), "commit": git.get("commit")}
    rows = {name: value for name, value in rows.items() if value is not None}
    return f"\n## Environment\n\n{_table(('', ''), rows.items())}" if rows else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)


def _short(count: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
