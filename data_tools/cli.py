"""`kaiyuan-data`: one command a stage, from raw text to a phase. No logic lives here, only arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_kaiyuan.command_line import SeveralValuesCommand, make_app, run_app

app = make_app("Turn raw text into Megatron corpora and ordered training phases.")
tokenizer_app = make_app("Train a tokenizer, or see how well one fits a text.")
app.add_typer(tokenizer_app, name="tokenizer")


@app.command()
def harvest(
    output: Annotated[Path, typer.Argument(help="folder that gets {domain}.train.jsonl and {domain}.heldout.jsonl")],
    megabytes: Annotated[float, typer.Option(help="10^6 bytes of training text a domain")] = 3.0,
    held_out: Annotated[float, typer.Option(help="share of the source files that is never trained on")] = 0.05,
    seed: Annotated[int, typer.Option(help="which files are taken and which are held out")] = 1234,
) -> None:
    """Collect real text that this machine already has: code, mathematics, English, and Chinese where there is some.

    Example: kaiyuan-data harvest runs/text --megabytes 3
    """
    from data_tools.harvest import harvest as collect

    results = []
    for result in collect(output, megabytes, held_out, seed):
        results.append(result)
        print(result if result.documents["train"] else f"{result.domain}: none on this machine, left out", flush=True)
    documents = sum(len(result.documents["train"]) for result in results)
    size = sum(result.size["train"] for result in results)
    domains = sum(bool(result.documents["train"]) for result in results)
    print(f"harvest: {documents:,} training documents, {size / 1e6:.1f} MB in {domains} domains")


@tokenizer_app.command("train", cls=SeveralValuesCommand)
def tokenizer_train(
    inputs: Annotated[list[Path], typer.Option("--input", help="JSON lines files")],
    output: Annotated[Path, typer.Option("--output", help="the tokenizer.json to write")],
    vocab_size: Annotated[int, typer.Option(help="ids in all, the 256 bytes and the end of a document included")],
    json_key: Annotated[str, typer.Option(help="field that holds the text")] = "text",
) -> None:
    """Train a byte-fallback BPE tokenizer; any text comes back unchanged.

    Example: kaiyuan-data tokenizer train --input runs/text/*.train.jsonl --vocab-size 8192 --output runs/tokenizer.json
    """
    from data_tools.text import texts
    from data_tools.tokenizer import TextTokenizer
    from data_tools.train_tokenizer import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(lambda: (text for text, _ in texts(inputs, json_key)), vocab_size), output)
    single = sum(len(token) == 1 for token in TextTokenizer(output).vocabulary)
    print(f"tokenizer train: {vocab_size:,} tokens, {single:,} of them single characters and 256 bytes, in {output}")


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    tokenizer: Annotated[Path, typer.Argument(help="tokenizer.json")],
    inputs: Annotated[list[Path], typer.Argument(help="JSON lines files")],
    json_key: Annotated[str, typer.Option(help="field that holds the text")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure bytes a token and the share of byte tokens, by domain.

    Example: kaiyuan-data tokenizer inspect runs/tokenizer.json runs/text/*.heldout.jsonl
    """
    from data_tools.fit import measure

    fits = measure(tokenizer, inputs, json_key)
    if as_json:
        print(json.dumps({fit.domain: fit.as_dict() for fit in fits}, ensure_ascii=False))
        return
    for fit in fits[:-1]:
        print(fit)
    print(f"tokenizer inspect: {fits[-1]}")


@app.command(cls=SeveralValuesCommand)
def preprocess(
    inputs: Annotated[list[Path], typer.Option("--input", help="JSON lines files, plain or .gz, .zst, .bz2, .lz4")],
    output_prefix: Annotated[Path, typer.Option(help="the corpus is {output_prefix}_{json_key}_document")],
    tokenizer_model: Annotated[Path, typer.Option(help="tokenizer.json, or the folder that holds it")],
    json_keys: Annotated[list[str], typer.Option(help="fields to tokenize, each into a corpus")] = ["text"],  # noqa: B006
    score_keys: Annotated[list[str], typer.Option(help="number fields to keep beside each document")] = [],  # noqa: B006
    append_eod: Annotated[bool, typer.Option(help="end each document with the end-of-document token")] = True,
    eod_token: Annotated[str | None, typer.Option(help="name of that token, where it cannot be guessed")] = None,
    workers: Annotated[int, typer.Option(help="processes; the result is the same for any number")] = 1,
    max_bad_rows: Annotated[int, typer.Option(help="lines without valid JSON or fields that may be left out")] = 0,
) -> None:
    """Tokenize JSON lines into a Megatron .bin/.idx corpus with metadata and a manifest.

    Example: kaiyuan-data preprocess --input runs/text/code.train.jsonl --output-prefix runs/code
    --tokenizer-model runs/tokenizer.json --score-keys score --workers 2
    """
    from data_tools.preprocess import Settings
    from data_tools.preprocess import preprocess as write

    settings = Settings(tokenizer_model, tuple(json_keys), tuple(score_keys), append_eod, eod_token)
    totals = write(inputs, output_prefix, settings, workers, max_bad_rows)
    for prefix in totals.prefixes:
        print(prefix)
    print(totals)


@app.command()
def verify(prefixes: Annotated[list[Path], typer.Argument(help="corpora, without .bin or .idx")]) -> None:
    """Read every byte of corpora and compare it with their manifests.

    Example: kaiyuan-data verify runs/code_text_document
    """
    from data_tools.verify import verify as check

    corpora = [check(prefix) for prefix in prefixes]
    sequences, tokens = sum(map(len, corpora)), sum(corpus.num_tokens for corpus in corpora)
    print(f"verify: {len(corpora)} corpora are whole, {sequences:,} sequences, {tokens:,} tokens")


@app.command()
def inspect(
    prefix: Annotated[Path, typer.Argument(help="a corpus, without .bin or .idx")],
    sequence: Annotated[int, typer.Option(help="the sequence to show")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show what is in a corpus: counts, lengths, and the beginning of a document.

    Example: kaiyuan-data inspect runs/code_text_document --sequence 3
    """
    from data_tools.verify import decode_sample, inspect_corpus

    found = inspect_corpus(prefix)
    found["sample"] = decode_sample(prefix, sequence)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(found["sample"], "", sep="\n")
    lengths = ", ".join(f"{share} {length:,}" for share, length in found["lengths"].items())
    print(f"tokens a sequence, by quantile: {lengths}")
    print(f"inspect: {found['sequences']:,} sequences, {found['tokens']:,} tokens of {found['dtype']}")


@app.command()
def curriculum(
    recipe: Annotated[Path, typer.Argument(help="order recipe, YAML")],
    output: Annotated[Path, typer.Option("--output", help="folder that gets one folder a phase")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, e.g. 'phases[0].seed=7'")] = None,
    phase: Annotated[str | None, typer.Option(help="build this phase only")] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: every core; the result is the same for any number")] = 0,
) -> None:
    """Build the document order of each phase: shuffled, or quality ascending (Algorithm 1).

    Example: kaiyuan-data curriculum launch/recipes/quickstart/order.yaml --output runs/phases
    """
    from data_tools.curriculum import build_recipe

    print(build_recipe(recipe, overrides or [], output, phase, threads))


def main() -> None:
    """Entry point of `kaiyuan-data`."""
    run_app(app)


if __name__ == "__main__":
    main()
