"""Does the detector of jumps find where a dataset that is dense in knowledge begins to be remembered? Real runs.

    python -m benchmarks.knowledge_jump --folder runs/knowledge_jump

Biographies (`benchmarks.biographies`) take a growing share of English text that this machine keeps; networks of three
sizes train on each mixture, all for the same number of tokens. Three domains are held out: texts about the same people
that were not trained on, the same texts with each person's values exchanged for another's, and English.

What is known is measured by what exchanged values cost: the bits of a text with wrong values less those of the same
text with the right ones. Names, words and sentences are the same in both, so that a network which knows how biographies
are written, but not who is who, is at 0 whatever the share. The measure has no upper end: what is held for impossible
costs more than all that there is to know. The detector and the law get what `kaiyuan mix` would get: bits per byte of
the biographies as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from benchmarks.biographies import BITS, people, texts, with_wrong_values
from benchmarks.dedup_texts import english_documents
from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import DatasetRecipe, PhaseRecipe
from data_tools.tokenizers.train_tokenizer import train_tokenizer
from megatron_kaiyuan.research.mixture.law import Matrix, fit, left_out
from megatron_kaiyuan.research.mixture.reach import Jump, jumps
from megatron_kaiyuan.research.queue import Run, run_all

HIDDEN = (32, 64, 128)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)
ENGLISH_VOCABULARY = 512
# On one side of a jump, for a law of two datasets.
ENOUGH_RUNS = 6
DOMAINS = ("people", "exchanged", "english")
NAMES = ["biographies", "english"]


def main(arguments: Sequence[str] | None = None) -> None:
    given, began = parse(arguments), time.time()
    with tempfile.TemporaryDirectory() as name:
        table = train(given.folder or Path(name), given)
    by_size = [[row for row in table if row["hidden"] == hidden] for hidden in given.hidden]
    places = [report(rows) for rows in by_size]
    for smaller, larger in pairwise(by_size):
        print(differences(smaller, larger))
    print(moves([rows[0]["parameters"] for rows in by_size], places))
    print(f"{len(table)} runs; {time.time() - began:.0f} s, load {os.getloadavg()[0]:.0f}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help="sizes of the networks' layers")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the biographies")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=262_144, help="of each run")
    parser.add_argument("--slots", type=int, help="runs at the same time; default: one a core")
    parser.add_argument("--folder", type=Path, help="keep all of it there, and continue")
    return parser.parse_args(arguments)


def train(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each size and share: `known` bits of a text's `BITS`, and bits per byte by domain."""
    bytes_of_people, texts_of_people = write_corpora(folder, given.people, given.tokens)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    runs = []
    for hidden in given.hidden:
        recipe = folder / f"network_{hidden}.yaml"
        recipe.write_text(yaml.safe_dump(network(hidden, vocabulary, given.tokens)))
        for share in given.shares:
            phase = build(folder, share, given.tokens)
            runs.append(
                Run(
                    name=f"hidden {hidden}, share {share:g}",
                    recipe=recipe,
                    overrides=(f"data.phases[0].path={json.dumps(str(phase))}",),
                    labels={"hidden": hidden, "share": share},
                    held_out={domain: folder / "held_out" / domain for domain in DOMAINS},
                    held_out_tokens=None,
                )
            )
    rows = run_all(folder / "queue", runs, given.slots)
    for row in rows:
        row |= {domain: row[f"bits_per_byte/{domain}"] for domain in DOMAINS}
        row["known"] = (row["exchanged"] - row["people"]) * bytes_of_people / texts_of_people
    return rows


def write_corpora(folder: Path, count: int, tokens: int) -> tuple[int, int]:
    """Tokenizer, corpora of both datasets, held-out text; bytes and texts of the held-out biographies."""
    known = people(count, seed=1)
    held_out = texts(known, max(200 // count, 2) * count, seed=2)
    exchanged = texts(with_wrong_values(known), len(held_out), seed=2)
    biographies = texts(known, tokens // 28, seed=3)
    english = english_documents(60 + tokens // 400, 2000)
    order = np.random.default_rng(4).permutation(len(english))
    english = [english[at] for at in order]
    path = folder / "tokenizer.json"
    if not path.exists():
        tokenizer = Tokenizer.from_str(json.dumps(train_tokenizer(lambda: iter(english[60:560]), ENGLISH_VOCABULARY)))
        words = {word for text in [*held_out, *biographies] for word in re.findall(r" ?\w+|\.", text)}
        # A word of the biographies is a token of its own: what they teach is who has what, not how it is spelt.
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in sorted(words)])
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path))
        write_corpus(folder / "held_out" / "people", held_out, tokenizer)
        write_corpus(folder / "held_out" / "exchanged", exchanged, tokenizer)
        write_corpus(folder / "held_out" / "english", english[:60], tokenizer)
        write_corpus(folder / "corpora" / "biographies", biographies, tokenizer)
        write_corpus(folder / "corpora" / "english", english[60:], tokenizer)
    return sum(len(text) for text in held_out), len(held_out)


def write_corpus(prefix: Path, documents: Sequence[str], tokenizer: Tokenizer) -> None:
    """Tokens, and 0 at the end of each document."""
    ids = [[*encoding.ids, 0] for encoding in tokenizer.encode_batch(list(documents))]
    about = {"path": "none", "fingerprint": "xxh3:0", "vocab_size": tokenizer.get_vocab_size(), "eod_id": 0}
    names = [prefix.name] * len(ids)
    with CorpusWriter(prefix, about, []) as writer:
        sizes = [len(text.encode()) for text in documents]
        writer.add(Documents(np.concatenate(ids), [len(one) for one in ids], sizes, names, names, {}))


def build(folder: Path, share: float, tokens: int) -> Path:
    """A shuffled phase with this share of biographies."""
    name = f"share_{share:g}"
    datasets = [
        DatasetRecipe(corpus=corpus, share=part)
        for corpus, part in zip(NAMES, (share, round(1 - share, 6)), strict=True)
    ]
    phase = PhaseRecipe(name=name, order="shuffle", seed=1, tokens=tokens, datasets=datasets)
    corpora = {corpus: folder / "corpora" / corpus for corpus in NAMES}
    return build_phase(phase, corpora, folder / "phases" / name, 1).folder


def network(hidden: int, vocabulary: int, tokens: int) -> dict[str, Any]:
    """A recipe of two layers. Sub-layers begin at full size: so short a run would not wait for their gains to grow."""
    shape = {"hidden_size": hidden, "ffn_hidden_size": 3 * hidden, "kv_channels": max(hidden // 4, 8)}
    decay = {"final_lr": 5e-4, "decay_fraction": 0.5, "decay_shape": "linear"}
    return {
        "run_dir": "unused",
        "platform": "cpu",
        "model": {
            "preset": "kaiyuan-tiny",
            "num_layers": 2,
            "vocab_size": vocabulary,
            "post_norm_initial_gain": 1.0,
            "init_method_std": 0.05,
            "rotary_base": 10_000,
            **shape,
        },
        "data": {"phases": [{"path": "unused", "peak_lr": 1e-2, **decay}]},
        "train": {"seq_length": 128, "micro_batch_size": 4, "global_batch_size": 4},
        "optimizer": {"warmup_tokens": tokens // 32, "weight_decay": 0.0},
        "monitor": {"activations_every_steps": 0, "log_every_steps": 20},
    }


def report(rows: Sequence[dict[str, Any]]) -> float | None:
    """One size: what is known along the share, and what the detector and the law make of it; the share of `jump_at`."""
    print(f"hidden {rows[0]['hidden']}: {rows[0]['parameters']:,} parameters, {rows[0]['tokens']:,} tokens a run")
    print("  share   bits of a text that are known   biographies   English (bits per byte)")
    for row in rows:
        print(f"  {row['share']:5.3f}   {row['known']:29.1f}   {row['people']:11.4f}   {row['english']:7.4f}")
    shares_rd = np.array([[row["share"], 1 - row["share"]] for row in rows])
    losses = {domain: np.array([row[domain] for row in rows]) for domain in ("people", "english")}
    for domain, losses_r in losses.items():
        found = jumps(NAMES, shares_rd, losses_r)
        print(f"  detector on {domain}: {'; '.join(map(words, found)) or 'no jump'}")
    place = jump_at(rows)
    print(f"  half of the {BITS:.1f} bits are known from a share of {place and round(place, 2)}")
    if place is not None:
        for domain, losses_r in losses.items():
            print(f"  law on {domain}: {errors(shares_rd, losses_r, shares_rd[:, 0] < place)}")
    return place


def words(jump: Jump) -> str:
    return (
        f"a jump along the share of {jump.dataset}, from {jump.share:.2f} on (slope {jump.below:+.2f} below, "
        f"{jump.above:+.2f} above, p {jump.p_value:.3f})"
    )


def jump_at(rows: Sequence[dict[str, Any]]) -> float | None:
    """The smallest share at which half of what there is to know is known, between two runs by a straight line."""
    for row, following in pairwise(rows):
        if row["known"] < BITS / 2 <= following["known"]:
            part = (BITS / 2 - row["known"]) / (following["known"] - row["known"])
            return float(row["share"] + part * (following["share"] - row["share"]))
    return None


def errors(shares_rd: Matrix, losses_r: Matrix, below: NDArray[np.bool_]) -> str:
    """Errors of the law: of each run predicted from the others, and of each side of the jump from the other side."""
    penalty = fit(shares_rd, losses_r).penalty
    others = np.sqrt(np.mean((left_out(shares_rd, losses_r, penalty) - losses_r) ** 2))
    parts = [f"leave-out error {others:.3f}"]
    for name, taken in (("above", below), ("below", ~below)):
        if taken.sum() >= ENOUGH_RUNS and (~taken).any():
            off = fit(shares_rd[taken], losses_r[taken])(shares_rd[~taken]) - losses_r[~taken]
            parts.append(f"{name} the jump, by the runs on the other side, {np.median(off):+.3f} in the median")
    return ", ".join(parts) + " bits per byte"


def differences(smaller: Sequence[dict[str, Any]], larger: Sequence[dict[str, Any]]) -> str:
    """What the larger network gains on each domain: the same at all shares, or much more where it alone has jumped."""
    parts = []
    for domain in ("people", "english"):
        gains = [(small[domain] - large[domain], small["share"]) for small, large in zip(smaller, larger, strict=True)]
        (least, at_least), (most, at_most) = min(gains), max(gains)
        parts.append(f"{domain} {least:+.3f} (share {at_least:g}) to {most:+.3f} (share {at_most:g})")
    return f"hidden {larger[0]['hidden']} gains on {smaller[0]['hidden']}, bits per byte: {', '.join(parts)}"


def moves(sizes: Sequence[int], places: Sequence[float | None]) -> str:
    """How the jump moves with the size of the network."""
    known = [(size, place) for size, place in zip(sizes, places, strict=True) if place is not None]
    if len(known) < 2:
        return "fewer than two sizes have a jump: how it moves cannot be said"
    sizes_p, places_p = np.log(np.array(known)).T
    slope = np.polyfit(sizes_p, places_p, 1)[0]
    listed = ", ".join(f"{place:.2f} at {size:,} parameters" for size, place in known)
    return f"half is known from a share of {listed}: about parameters ^ {slope:.2f}"


if __name__ == "__main__":
    main()
