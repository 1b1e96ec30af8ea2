"""A small corpus of text that every machine has, made by this project's own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context
from megatron_kaiyuan.files import write_text

VOCABULARY = 1024
# Enough for a step of Kaiyuan-2B on sixteen devices.
_MEGABYTES = 0.5
_ORDER = """\
corpora:
  text: {corpora}/text_text_document
phases:
  - name: phase
    order: shuffle
    seed: 1234
    datasets:
      - {{corpus: text, keep: all}}
"""


def phase(context: Context) -> Path:
    """The folder of a phase of about 400,000 tokens; made by the first check that asks for it.

    Raises:
        CheckFailed: a command of this project's data tools failed.
    """
    folder = context.work / "corpus"
    made = folder / "phases" / "phase"
    if made.exists():
        return made
    text, tokenizer = folder / "text", folder / "tokenizer" / "tokenizer.json"
    _data("harvest", text, "--megabytes", str(_MEGABYTES), "--force")
    texts = [text / f"{domain}.train.jsonl" for domain in ("code", "english")]
    inputs = [str(path) for path in texts if path.exists()]
    sizes = ["--vocab-size", str(VOCABULARY)]
    _data("tokenizer", "train", "--input", *inputs, *sizes, "--output", tokenizer, "--force")
    prefix = ["--output-prefix", str(folder / "corpora" / "text"), "--tokenizer-model", str(tokenizer)]
    _data("preprocess", "--input", *inputs, *prefix, "--force")
    order = folder / "order.yaml"
    write_text(order, _ORDER.format(corpora=folder / "corpora"))
    _data("curriculum", order, "--output", folder / "phases", "--force")
    return made


def _data(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "data_tools", *map(str, arguments)]
    print(f"$ kaiyuan-data {' '.join(command[3:])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        raise CheckFailed(f"kaiyuan-data {arguments[0]} failed, as its output says")
