"""The commands that write, each with words for two products."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from tests.faults.bench import Bench

_IMPORTED = (
    "data_tools.corpora.merge",
    "data_tools.curriculum.build",
    "data_tools.curriculum.materialize",
    "data_tools.curriculum.report",
    "data_tools.dedup.deduplicate",
    "data_tools.harvesting.harvest",
    "data_tools.preprocessing.preprocess",
    "data_tools.scores.documents",
    "data_tools.scores.train_linear",
    "data_tools.tokenizers.train_tokenizer",
    "data_tools.windows.cut",
    "megatron_kaiyuan.checkpoint.average",
    "megatron_kaiyuan.checkpoint.imported",
    "megatron_kaiyuan.compare.page",
    "megatron_kaiyuan.evaluate.averages",
    "megatron_kaiyuan.export.run",
    "megatron_kaiyuan.report.build",
)
_EVALUATION = ("lm_eval", "transformers", "megatron_kaiyuan.evaluate.run")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that writes into the folder `out`.

    Attributes:
        name: as a user writes it.
        first, second: its words for two products, A and B.
        output: what it writes, by name in `out`: the file, the folder, or a file of several.
        products: a pattern for each product, where one command makes several; each is replaced for itself.
        heavy: it takes seconds.
    """

    name: str
    first: list[str]
    second: list[str]
    output: str
    products: tuple[str, ...] = ("",)
    heavy: bool = False


def prepare(bench: Bench, evaluation: bool) -> list[Command]:
    """Make the inputs of all commands, and import what they need, so that a fork takes no time.

    Args:
        evaluation: with `kaiyuan eval`, whose libraries take long to import.
    """
    inputs, out = bench.folder / "inputs", bench.folder / "out"
    bench.reference("dp2")
    bench.in_child(lambda: _make_inputs(inputs, evaluation), "inputs")
    run_dir = bench.folder / "undisturbed_dp2"
    for name in ("run_a", "run_b"):
        (inputs / name).mkdir()
        for file in ("metrics.jsonl", "config.yaml"):
            shutil.copyfile(run_dir / file, inputs / name / file)
    _import(evaluation)
    return [
        *_orders(bench, inputs, out),
        *_corpora(inputs, out),
        *_documents(inputs, out),
        *_models(run_dir, inputs, out),
        *(_evaluation(inputs, out) if evaluation else []),
    ]


def _orders(bench: Bench, inputs: Path, out: Path) -> list[Command]:
    """Phases, their plain copies, windows and their page."""
    order, phases = str(bench.folder / "order.yaml"), str(out / "phases")

    def curriculum(*words: str) -> tuple[list[str], list[str]]:
        first = ["curriculum", order, "--output", phases, "--threads", "1", *words]
        return first, [*first, "phases[0].seed=7", "phases[1].seed=8"]

    windows = ("quantile", None, "--score", "score", "--width", 0.2, "--output", out / "windows")
    page = ("report", order, "--phases", None, "--output", out / "order.html")
    second = ("--phase", "second")
    materialized = ("phases/second/", "phases/second_text_document")
    return [
        Command("kaiyuan-data curriculum", *curriculum(*second), "phases/second"),
        Command(
            "kaiyuan-data curriculum --materialize tokens",
            *curriculum(*second, "--materialize", "tokens"),
            "phases/second_text_document.bin",
            materialized,
        ),
        Command(
            "kaiyuan-data curriculum --materialize index",
            *curriculum(*second, "--materialize", "index"),
            "phases/second_text_document.idx",
            materialized,
        ),
        Command(
            "kaiyuan-data quantile",
            *_pair(*windows, a=inputs / "a_text_document", b=inputs / "b_text_document"),
            "windows",
        ),
        Command("kaiyuan-data report", *_pair(*page, a=bench.folder / "phases", b=inputs / "phases"), "order.html"),
    ]


def _corpora(inputs: Path, out: Path) -> list[Command]:
    """From text to tokens."""
    text, bad = _texts(inputs, ".jsonl"), _texts(inputs, ".bad.jsonl")
    train = ("tokenizer", "train", "--input", None, "--vocab-size", 512, "--output", out / "tokenizer.json")
    tokens: tuple[Any, ...] = (
        "preprocess",
        "--input",
        None,
        "--output-prefix",
        out / "new",
        "--tokenizer-model",
        inputs / "tokenizer",
    )
    tokens = (*tokens, "--score-keys", "score", "--max-bad-rows", 2, "--task-bytes", 20000)
    join = ["merge", "--threads", "1", "--output-prefix", str(out / "all")]
    corpora = [str(inputs / f"{name}_text_document") for name in "ab"]
    return [
        Command("kaiyuan-data merge", [*join, *corpora], [*join, *corpora[::-1]], "all.bin"),
        Command(
            "kaiyuan-data preprocess",
            *_pair(*tokens, "--workers", 1, a=bad[0], b=bad[1]),
            "new_text_document.bin",
            ("new_text", "new.bad_rows"),
        ),
        Command(
            "kaiyuan-data preprocess, two keys, two workers",
            *_pair(*tokens, "--workers", 2, "--json-keys", "text", "title", a=bad[0], b=bad[1]),
            "new_text_document.bin",
            ("new_text", "new_title", "new.bad_rows"),
        ),
        Command("kaiyuan-data tokenizer train", *_pair(*train, a=text[0], b=text[1]), "tokenizer.json"),
        Command(
            "kaiyuan-data harvest",
            *_pair("harvest", out / "text", "--megabytes", 0.01, "--seed", None, a=1, b=2),
            "text",
            heavy=True,
        ),
    ]


def _documents(inputs: Path, out: Path) -> list[Command]:
    """Duplicates and scores."""
    text = _texts(inputs, ".jsonl")
    unique = ("dedup", "--input", None, "--output", out / "unique", "--workers", 1, "--task-bytes", 20000)
    scored: tuple[Any, ...] = (
        "score",
        "--input",
        None,
        "--output",
        out / "scored",
        "--workers",
        1,
        "--task-bytes",
        20000,
    )
    scored = (*scored, "--scorer", "rules", "--quantile", "score", "--filter", "rules_gopher_words > 40")
    classifier: tuple[Any, ...] = ("scorer", "train", "--positives", None, "--negatives", inputs / "numbers.txt")
    classifier = (*classifier, "--output", out / "quality.bin", "--dim", 4, "--buckets", 1000)
    return [
        Command("kaiyuan-data dedup", *_pair(*unique, a=text[0], b=text[1]), "unique", ("unique/",)),
        Command("kaiyuan-data score", *_pair(*scored, a=text[0], b=text[1]), "scored", ("scored/",)),
        Command("kaiyuan-data scorer train", *_pair(*classifier, a=text[0], b=text[1]), "quality.bin"),
    ]


def _models(run_dir: Path, inputs: Path, out: Path) -> list[Command]:
    """What is made of a run."""
    averages = ("averages", run_dir, "--held-out", inputs.parent / "corpus" / "text", "--device", "cpu")
    return [
        Command(
            "kaiyuan report",
            *_pair("report", None, "--output", out / "report.html", a=inputs / "run_a", b=inputs / "run_b"),
            "report.html",
            heavy=True,
        ),
        Command(
            "kaiyuan compare",
            *_pair("compare", run_dir, None, "--output", out / "both.html", a=inputs / "run_a", b=inputs / "run_b"),
            "both.html",
            heavy=True,
        ),
        Command(
            "kaiyuan average",
            *_pair("average", run_dir, "--last", None, "--output", out / "averaged", a=2, b=3),
            "averaged",
            heavy=True,
        ),
        Command(
            "kaiyuan averages",
            *_pair(*averages, "--last", None, "--output", out / "averages.html", a=1, b=2),
            "averages.json",
            ("averages.json", "averages.html"),
            heavy=True,
        ),
        Command(
            "kaiyuan export",
            *_pair("export", None, "--output", out / "model", a=_step(run_dir, 8), b=_step(run_dir, 12)),
            "model",
            heavy=True,
        ),
        Command(
            "kaiyuan import",
            *_pair("import", None, "--output", out / "imported", a=inputs / "export_a", b=inputs / "export_b"),
            "imported",
            heavy=True,
        ),
    ]


def _evaluation(inputs: Path, out: Path) -> list[Command]:
    # Of another model results are added; other settings of the same one would replace its results.
    measured: tuple[Any, ...] = (
        "eval",
        inputs / "model",
        "--held-out",
        inputs / "held_out",
        "--held-out-text",
        inputs / "a.jsonl",
    )
    measured = (*measured, "--output", out / "eval.json", "--seq-length", None)
    return [Command("kaiyuan eval", *_pair(*measured, a=2048, b=1024), "eval.json", heavy=True)]


def _pair(*words: object, a: object, b: object) -> tuple[list[str], list[str]]:
    """The words of two products, with `a` and `b` in the place of None."""
    first, second = ([str(value if word is None else word) for word in words] for value in (a, b))
    return first, second


def _texts(inputs: Path, suffix: str) -> list[Path]:
    return [inputs / f"{name}{suffix}" for name in "ab"]


def _step(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step}"


def _make_inputs(inputs: Path, evaluation: bool) -> None:
    from data_tools.curriculum.build import build_recipe
    from data_tools.preprocessing.preprocess import Settings, preprocess
    from data_tools.tokenizers.train_tokenizer import train_and_save
    from megatron_kaiyuan.config import ModelConfig
    from megatron_kaiyuan.export import export_model
    from tests.helpers.references.network import SHAPE, random_weights
    from tests.helpers.training.tiny_model import random_documents, write_corpus, write_model

    inputs.mkdir()
    for number, name in enumerate("ab"):
        _write_text(inputs / f"{name}.jsonl", number)
        rows = (inputs / f"{name}.jsonl").read_text().splitlines()
        (inputs / f"{name}.bad.jsonl").write_text("\n".join([*rows[:40], "{no row", *rows[40:], "nor this"]))
    (inputs / "numbers.txt").write_text("".join(f"{number} 0 1\n" for number in range(50)))
    train_and_save([inputs / "a.jsonl"], "text", 600, inputs / "tokenizer" / "tokenizer.json")
    for name in "ab":
        settings = Settings(inputs / "tokenizer", ("text",), ("score",))
        preprocess([inputs / f"{name}.jsonl"], inputs / name, settings)
    build_recipe(inputs.parent / "order.yaml", ("phases[0].seed=9",), inputs / "phases", None, 1)
    model = ModelConfig(**SHAPE)
    for seed, name in enumerate("ab"):
        export_model(random_weights(model, seed), model, inputs / f"export_{name}", None)
    if evaluation:
        path = write_model(inputs / "model") / "config.json"
        # Room for the tasks of the command, whose items are longer than those of its tests.
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 2048}))
        write_corpus(inputs / "held_out", random_documents(4, seed=1))


def _write_text(path: Path, seed: int) -> None:
    """Words that a tokenizer can learn."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(2, 9))) for _ in range(300)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(150):
            text = " ".join(drawn.choices(words, k=drawn.randint(30, 90)))
            row = {"text": text, "title": text[:20], "domain": "test", "source": str(number), "score": drawn.random()}
            file.write(json.dumps(row) + "\n")


def _import(evaluation: bool) -> None:
    for module in (*_IMPORTED, *(_EVALUATION if evaluation else ())):
        importlib.import_module(module)
