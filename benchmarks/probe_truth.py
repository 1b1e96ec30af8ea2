"""Does `kaiyuan probe` find what was planted, and nothing where nothing was? Real text and runs, the command's code.

    python -m benchmarks.probe_truth --planted noise              five levels of character noise
    python -m benchmarks.probe_truth --planted nothing --repeats 10

The text is English that this machine keeps (Python's documentation, docstrings, descriptions of packages), a byte a
token. `noise`: a window's documents have a share of their characters replaced by letters (`benchmarks.planted_noise`);
every level has the same documents in the same order, others for each of three seeds. Its level stands for the quantile.
`nothing`: windows are random documents, drawn again for each repeat. The held-out text is clean in both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from benchmarks.dedup_texts import english_documents
from benchmarks.planted_noise import LEVELS, damage
from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.curriculum.build import build_recipe
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.research.probes.command import plan, probe

SEEDS, WINDOWS = 3, 5
DOCUMENT_BYTES, HELD_OUT_DOCUMENTS = 2000, 60
VOCABULARY, END = 257, 256
RECIPE = {
    "run_dir": "unused",
    "platform": "cpu",
    "model": {
        "preset": "kaiyuan-tiny",
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 192,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 16,
        "vocab_size": VOCABULARY,
    },
    "data": {"phases": [{"path": "unused", "peak_lr": 1e-2}]},
    "train": {"seq_length": 128, "micro_batch_size": 16, "global_batch_size": 16},
    "optimizer": {"warmup_tokens": 20_480},
    "monitor": {"activations_every_steps": 0, "log_every_steps": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", choices=["noise", "nothing"], required=True)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=204_800, help="of each run")
    parser.add_argument("--small-lr", type=float, default=0.3, help="factor of the learning rate 0.01")
    parser.add_argument("--folder", type=Path, help="keep all of it there, and continue")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        verdicts = [repeat(folder / str(number), number, given) for number in range(given.repeats)]
    print(f"{given.planted}: {', '.join(f'{verdicts.count(one)} {one}' for one in sorted(set(verdicts)))}")


def repeat(folder: Path, number: int, given: argparse.Namespace) -> str:
    """One probe from text to verdict."""
    began = time.time()
    drawn = np.random.default_rng(number)
    count = given.tokens // DOCUMENT_BYTES + given.tokens // DOCUMENT_BYTES // 10 + 2
    windows = 1 if given.planted == "noise" else WINDOWS
    texts = english_documents(HELD_OUT_DOCUMENTS + count * SEEDS * windows, DOCUMENT_BYTES)
    order = drawn.permutation(len(texts))
    held_out, rest = order[:HELD_OUT_DOCUMENTS], order[HELD_OUT_DOCUMENTS:]
    write_corpus(folder / "held_out" / "english", [texts[at] for at in held_out])
    named = []
    for at, level in enumerate(LEVELS[:WINDOWS]):
        parts = []
        for seed in range(SEEDS):
            start = (seed if given.planted == "noise" else at * SEEDS + seed) * count
            part = [texts[one] for one in rest[start : start + count]]
            if given.planted == "noise":
                part = [damage(text, level, number) for text in part]
            parts.append(write_phase(folder / f"window_{at}", f"part_{seed}", part))
        named.append({"name": f"{level:g}", "dataset": given.planted, "quantile": level, "phases": parts})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    request = {
        "recipe": str(folder / "recipe.yaml"),
        "windows": named,
        "held_out": {"english": str(folder / "held_out" / "english")},
        "train_tokens": given.tokens,
        "seeds": SEEDS,
        "small_lr": given.small_lr,
    }
    (folder / "probes.yaml").write_text(yaml.safe_dump(request))
    print(plan(folder / "probes.yaml", ()).splitlines()[0])
    lines = probe(folder / "probes.yaml", (), folder / "probe")
    (measure,) = read_json(folder / "probe" / "answer" / "answer.json", "answer")["measures"]
    print(*lines[:-1], sep="\n")
    for window in measure["windows"]:
        print(f"  {window['window']:>5}  {window['mean']:.4f} ± {window['half_width']:.4f} bits per byte")
    means = [window["mean"] for window in measure["windows"]]
    print(
        f"  in order: {means == sorted(means)}; SD of a paired difference {measure['paired_sd']:.4f}; "
        f"{time.time() - began:.0f} s, load {os.getloadavg()[0]:.0f}",
        flush=True,
    )
    return measure["trends"][given.planted]["verdict"]


def write_phase(folder: Path, name: str, texts: Sequence[str]) -> str:
    """A corpus and a shuffled phase of all of it; phases of one name are read in one order (order.yaml's seed)."""
    write_corpus(folder / "corpora" / name, texts)
    phase = {"name": name, "order": "shuffle", "seed": 1, "datasets": [{"corpus": name}]}
    order = folder / f"{name}.yaml"
    order.write_text(yaml.safe_dump({"corpora": {name: str(folder / "corpora" / name)}, "phases": [phase]}))
    build_recipe(order, (), folder / "phases", None, 1)
    return str(folder / "phases" / name)


def write_corpus(prefix: Path, texts: Sequence[str]) -> None:
    """Bytes as tokens, and the end of a document."""
    raw = [text.encode() for text in texts]
    tokens = np.concatenate([np.append(np.frombuffer(one, np.uint8).astype(np.int64), END) for one in raw])
    tokenizer = {"path": "none", "fingerprint": "xxh3:0", "vocab_size": VOCABULARY, "eod_id": END}
    with CorpusWriter(prefix, tokenizer, []) as writer:
        names = ["english"] * len(raw)
        writer.add(Documents(tokens, [len(one) + 1 for one in raw], [len(one) for one in raw], names, names, {}))


if __name__ == "__main__":
    main()
