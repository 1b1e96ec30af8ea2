"""`kaiyuan-data`: one command a stage, from raw text to a phase. No logic lives here, only arguments."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli_documents import app as documents_app
from data_tools.cli_options import (
    EngineName,
    JsonKey,
    MaxBadRows,
    MaxCharacters,
    MaxRowBytes,
    TextColumn,
    TextDocuments,
    Workers,
    amount,
    paths,
    size,
)
from data_tools.cli_order import app as order_app
from data_tools.reading.limits import MAX_ROW_BYTES
from megatron_kaiyuan.command_line import Force, SeveralValuesCommand, make_app, run_app
from megatron_kaiyuan.nearby import corpus_argument
from megatron_kaiyuan.paths import path_word

log = logging.getLogger("data_tools.cli")

# `--engine` chose among these before there were engines that do the work; scripts of then still say so.
_TOKENIZER_ENGINES = ("reference", "gigatoken")

app = make_app("Turn raw text into Megatron corpora and ordered training phases.", root=True)
tokenizer_app = make_app("Train a tokenizer, or see how well one fits a text.")
app.add_typer(tokenizer_app, name="tokenizer")


@app.command()
def harvest(
    output: Annotated[Path, typer.Argument(help="folder that gets {domain}.train.jsonl and {domain}.heldout.jsonl")],
    megabytes: Annotated[float, amount("10^6 bytes of training text a domain")] = 3.0,
    held_out: Annotated[float, typer.Option(help="share of the source files that is never trained on")] = 0.05,
    seed: Annotated[int, typer.Option(help="which files are taken and which are held out")] = 1234,
    packages: Annotated[bool, typer.Option("--packages", help="code also from installed packages")] = False,
    force: Force = False,
) -> None:
    """Collect real text that this machine already has: code, mathematics, English, and Chinese where there is some.

    Example: kaiyuan-data harvest runs/text --megabytes 3
    """
    from data_tools.harvesting.harvest import harvest as collect

    results = []
    for result in collect(output, megabytes, held_out, seed, force=force, packages=packages):
        results.append(result)
        print(result if result.documents["train"] else f"{result.domain}: none on this machine, left out", flush=True)
    documents = sum(len(result.documents["train"]) for result in results)
    size = sum(result.size["train"] for result in results)
    domains = sum(bool(result.documents["train"]) for result in results)
    print(f"harvest: {documents:,} training documents, {size / 1e6:.1f} MB in {domains} domains")


app.add_typer(documents_app)


@tokenizer_app.command("train", cls=SeveralValuesCommand)
def tokenizer_train(
    inputs: Annotated[list[str], paths("--input", "text, as --input of preprocess")],
    output: Annotated[Path, typer.Option("--output", help="the tokenizer.json to write")],
    vocab_size: Annotated[int, size("ids in all, the 256 bytes and the end of a document included")],
    json_key: JsonKey = "text",
    max_row_bytes: MaxRowBytes = MAX_ROW_BYTES,
    force: Force = False,
) -> None:
    """Train a byte-fallback BPE tokenizer; any text comes back unchanged.

    Example: kaiyuan-data tokenizer train --input runs/text/*.train.jsonl --vocab-size 8192 --output runs/tokenizer.json
    """
    from data_tools.tokenizers.train_tokenizer import train_and_save

    print(train_and_save(inputs, json_key, vocab_size, output, force, max_row_bytes))


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    tokenizer: Annotated[Path, typer.Argument(help="tokenizer.json, sentencepiece .model, .tiktoken, or their folder")],
    inputs: Annotated[
        list[str],
        typer.Argument(parser=path_word, metavar="PATH", help="text, as --input of preprocess"),
    ],
    json_key: JsonKey = "text",
    max_row_bytes: MaxRowBytes = MAX_ROW_BYTES,
    eod_token: Annotated[str | None, typer.Option(help="the token that ends a document, as for preprocess")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure bytes a token and the share of byte tokens, by domain.

    Example: kaiyuan-data tokenizer inspect runs/tokenizer.json runs/text/*.heldout.jsonl
    """
    from data_tools.tokenizers.fit import measure

    fits = measure(tokenizer, inputs, json_key, eod_token, max_row_bytes)
    if as_json:
        print(json.dumps({fit.domain: fit.as_dict() for fit in fits}, ensure_ascii=False))
        return
    for fit in fits[:-1]:
        print(fit)
    print(f"tokenizer inspect: {fits[-1]}")


# Options of `preprocess`.
_MetaKeys = Annotated[list[str], typer.Option(help="other fields to keep, as text")]
_AppendEod = Annotated[bool, typer.Option(help="end each document with the end-of-document token")]
_Inputs = Annotated[
    list[str],
    paths("--input", "JSON lines, .parquet, .txt; packed too (.gz .zst .bz2 .lz4 .xz); folders, 'patterns*', URLs"),
]
_OutputPrefix = Annotated[Path, typer.Option(help="the corpus is {output_prefix}_{json_key}_document")]
_TokenizerModel = Annotated[Path, typer.Option(help="tokenizer file, or the folder that holds it")]
_JsonKeys = Annotated[list[str], typer.Option(help="fields to tokenize, each into a corpus")]
_ScoreKeys = Annotated[list[str], typer.Option(help="number fields to keep beside each document")]
_EodToken = Annotated[str | None, typer.Option(help="that token, where the tokenizer's files name none or disagree")]
_TokenizerEngine = Annotated[str, typer.Option(help="auto: the fastest that is proven to give the reference's ids")]
_HeldOut = Annotated[
    float, typer.Option(help="share of the documents for {output_prefix}.heldout_{json_key}_document; 0: none")
]
_TaskBytes = Annotated[int, size("input a task; 0 fits it to the input. The result is the same")]
_MergeOnly = Annotated[bool, typer.Option("--merge-only", help="join what the ranks have left, see above")]


@app.command(cls=SeveralValuesCommand)
def preprocess(
    inputs: _Inputs,
    output_prefix: _OutputPrefix,
    tokenizer_model: _TokenizerModel,
    json_keys: _JsonKeys = ["text"],  # noqa: B006
    text_column: TextColumn = None,
    text_documents: TextDocuments = "line",
    score_keys: _ScoreKeys = [],  # noqa: B006
    meta_keys: _MetaKeys = [],  # noqa: B006
    append_eod: _AppendEod = True,
    eod_token: _EodToken = None,
    tokenizer_engine: _TokenizerEngine = "auto",
    max_characters: MaxCharacters = 0,
    max_bad_rows: MaxBadRows = 0,
    max_row_bytes: MaxRowBytes = MAX_ROW_BYTES,
    held_out: _HeldOut = 0.0,
    engine: EngineName = "auto",
    workers: Workers = 0,
    task_bytes: _TaskBytes = 0,
    merge_only: _MergeOnly = False,
    force: Force = False,
) -> None:
    """Tokenize text into a Megatron .bin/.idx corpus with metadata and a manifest.

    Example: kaiyuan-data preprocess --input runs/text/code.train.jsonl --output-prefix runs/code
    --tokenizer-model runs/tokenizer.json --score-keys score --workers 2

    A run that was stopped continues where it was when the same command is given again. Rows that were left out for a
    mistake are listed in {output_prefix}.bad_rows.jsonl.

    On several machines, with one folder that all of them see: start the same command with mpirun, srun or sbatch
    --array=0-N, as `mpirun -n 8 python -m mpi4py -m data_tools preprocess ...`, or use launch/spark_submit.sh. A rank
    works until all is done, and the first one joins what all have left; if that one ended early, give the command once
    more, anywhere, with --merge-only.
    """
    from data_tools.engines.choose import choose_engine
    from data_tools.preprocessing.preprocess import Settings
    from data_tools.preprocessing.preprocess import preprocess as write

    if engine in _TOKENIZER_ENGINES:
        log.warning(f"--engine {engine}: the tokenizer's engine is --tokenizer-engine {engine} now")
        engine, tokenizer_engine = "auto", engine
    chosen = choose_engine(engine, workers)
    if merge_only and not chosen.is_first:
        return
    settings = Settings(
        tokenizer_model,
        tuple(json_keys),
        tuple(score_keys),
        append_eod,
        eod_token,
        tuple(meta_keys),
        text_column,
        text_documents,
        max_characters,
        tokenizer_engine,
        max_row_bytes,
        held_out,
    )
    totals = write(inputs, output_prefix, settings, chosen, max_bad_rows, task_bytes, merge_only, force)
    if totals.tokenizer_engine and chosen.is_first:
        print(totals.tokenizer_engine)
    for prefix in totals.prefixes if chosen.is_first else ():
        print(prefix)
    print(totals)


@app.command()
def merge(
    prefixes: Annotated[
        list[Path],
        typer.Argument(parser=corpus_argument, metavar="PREFIX", help="corpora, in the order to join them"),
    ],
    output_prefix: Annotated[Path, typer.Option(help="the joined corpus, without .bin or .idx")],
    threads: Annotated[int, typer.Option(min=0, help="0: every core; the result is the same for any number")] = 0,
    force: Force = False,
) -> None:
    """Join corpora of one tokenizer: the bytes are those of one writer for all documents. Memory does not grow.

    Pairs that Megatron's tools wrote are joined to such a pair, without metadata.

    Example: kaiyuan-data merge runs/part_0_text_document runs/part_1_text_document --output-prefix runs/all
    """
    from data_tools.corpora.merge import merge_corpora

    print(merge_corpora(prefixes, output_prefix, threads or os.cpu_count() or 1, force))


@app.command()
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=corpus_argument,
            metavar="PATH",
            help="corpora, without .bin or .idx, and folders of phases or documents",
        ),
    ],
    fast: Annotated[bool, typer.Option("--fast", help="headers, sizes and samples only")] = False,
    threads: Annotated[int, typer.Option(min=0, help="0: every core")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Read every byte of corpora, phases or documents and compare it with their manifests; the first fault is named.

    A phase is compared with the indexes of its corpora; their tokens are checked when they are named themselves. Pairs
    that Megatron's tools wrote have no manifest: of these it is checked that every sequence lies inside the .bin.

    Example: kaiyuan-data verify runs/code_text_document runs/phases/first
    """
    from data_tools.corpora.verify import verify as verify_corpus
    from data_tools.curriculum.verify import is_phase, verify_phase
    from data_tools.steps.folder import is_documents
    from data_tools.steps.verify import verify_documents
    from megatron_kaiyuan.progress import reading

    threads = threads or os.cpu_count() or 1
    paths = list(dict.fromkeys(paths))
    with reading("verify", None):
        documents = [verify_documents(path, fast) for path in paths if is_documents(path)]
        phases = [verify_phase(path, fast, threads) for path in paths if is_phase(path) and not is_documents(path)]
        corpora = [verify_corpus(path, fast, threads) for path in paths if not is_phase(path)]
    counts = {
        "corpora": len(corpora),
        "stock_pairs": sum(corpus.is_stock for corpus in corpora),
        "sequences": sum(map(len, corpora)),
        "tokens": sum(corpus.tokens for corpus in corpora),
        "phases": len(phases),
        "phase_documents": sum(phase.documents for phase in phases),
        "phase_tokens": sum(phase.tokens for phase in phases),
        "folders": len(documents),
        "documents": sum(folder.documents for folder in documents),
    }
    if as_json:
        print(json.dumps({**counts, "fast": fast}))
        return
    state = "whole by headers and sizes" if fast else "whole"
    found = []
    if corpora:
        subject = "1 corpus is" if len(corpora) == 1 else f"{len(corpora)} corpora are"
        stock = f" ({counts['stock_pairs']} of them without a manifest)" if counts["stock_pairs"] else ""
        found.append(f"{subject} {state}{stock}, {counts['sequences']:,} sequences, {counts['tokens']:,} tokens")
    if phases:
        subject = "1 phase is" if len(phases) == 1 else f"{len(phases)} phases are"
        found.append(f"{subject} {state}, {counts['phase_documents']:,} documents, {counts['phase_tokens']:,} tokens")
    if documents:
        subject = "1 folder is" if len(documents) == 1 else f"{len(documents)} folders are"
        found.append(f"{subject} {state}, {counts['documents']:,} documents")
    print(f"verify: {'; '.join(found)}")


@app.command()
def inspect(
    prefix: Annotated[
        Path, typer.Argument(parser=corpus_argument, metavar="PREFIX", help="a corpus, without .bin or .idx")
    ],
    sequence: Annotated[int, typer.Option(help="the sequence to show")] = 0,
    tokenizer_model: Annotated[Path | None, typer.Option(help="tokenizer, if not where the manifest says")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show what is in a corpus: counts, histograms of lengths and scores, and the beginning of a document.

    Example: kaiyuan-data inspect runs/code_text_document --sequence 3
    """
    from data_tools.corpora.inspect import describe_corpus, inspect_corpus
    from data_tools.tokenizers.decoding import decode_sample

    found = inspect_corpus(prefix)
    found["sample"] = decode_sample(prefix, sequence, tokenizer_model) if found["sequences"] else ""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(found["sample"], "", sep="\n")
    print(*describe_corpus(found), sep="\n")


app.add_typer(order_app)


def main() -> None:
    """Entry point of `kaiyuan-data`."""
    run_app(app, {"kaiyuan": "megatron_kaiyuan.cli"})


if __name__ == "__main__":
    main()
