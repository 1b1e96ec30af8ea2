"""The commands of `kaiyuan-data` over documents: dedup, score, audit, scorer. No logic lives here, only arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli_options import (
    EngineName,
    JsonKey,
    MaxBadRows,
    MaxCharacters,
    MaxRowBytes,
    TextColumn,
    TextDocuments,
    Workers,
    count,
    paths,
    size,
)
from data_tools.reading.limits import MAX_ROW_BYTES
from megatron_kaiyuan.command_line import Force, SeveralValuesCommand, make_app
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.nearby import corpus_word

app = make_app()
scorer_app = make_app("List the kinds of scorers, or train a linear one.")
app.add_typer(scorer_app, name="scorer")


# Options of `dedup`.
_Index = Annotated[Path | None, typer.Option("--index", help="folder that gets an index for later runs")]
_Inputs = Annotated[
    list[str], paths("--input", "as for preprocess; NAME= makes a dataset of its own", metavar="[NAME=]PATH")
]
_Output = Annotated[Path, typer.Option("--output", help="folder that gets documents/, dropped/ and report.json")]
_Score = Annotated[str | None, typer.Option(help="field with a number: of a cluster the highest stays")]
_Preset = Annotated[str | None, typer.Option(help="kaiyuan: what the released pipeline does, bit for bit")]
_Threshold = Annotated[float | None, typer.Option(help="least Jaccard index of near-duplicates; 0.7")]
_Ngram = Annotated[int | None, typer.Option(help="words of a shingle; 5")]
_Permutations = Annotated[int | None, typer.Option(help="numbers of a signature; 128")]
_Bands = Annotated[int | None, typer.Option(help="bands of a signature; 21")]
_Rows = Annotated[int | None, typer.Option(help="numbers of a band; 6")]
_Shingles = Annotated[
    str | None, typer.Option(help="auto (default), words or characters; auto: characters of Han, kana, Hangul")
]
_Numbers = Annotated[str | None, typer.Option(help="space (default): digits make no difference; or keep")]
_Verify = Annotated[
    bool | None, typer.Option("--verify/--no-verify", help="check candidates by their exact Jaccard index")
]
_Seed = Annotated[int | None, typer.Option(help="of the permutations; 1234")]
_Across = Annotated[
    bool, typer.Option("--across/--within", help="also between datasets, which are named in order of priority")
]
_Against = Annotated[list[Path], typer.Option(help="indexes of earlier runs, whose documents stay")]
_ExactOnly = Annotated[bool, typer.Option("--exact-only", help="equal texts only, case and spacing apart")]
_MaxCluster = Annotated[int | None, count("larger clusters lose exact duplicates only; 0: no limit; 10,000")]
_MaxRemoved = Annotated[float, typer.Option(help="stop if more than this share of a dataset would go")]
_Keeper = Annotated[
    bool, typer.Option("--keeper", help="remove only what is itself a near-duplicate of a document that stays")
]
_Columns = Annotated[bool, typer.Option("--columns", help="write columns beside the documents, not these")]
_TaskBytes = Annotated[int, size("input a task; 0 fits it to the input. Decides about ids")]
_AsJson = Annotated[bool, typer.Option("--json", help="print the report as one JSON object")]


@app.command(cls=SeveralValuesCommand)
def dedup(
    inputs: _Inputs,
    output: _Output,
    score: _Score = None,
    preset: _Preset = None,
    threshold: _Threshold = None,
    ngram: _Ngram = None,
    permutations: _Permutations = None,
    bands: _Bands = None,
    rows: _Rows = None,
    shingles: _Shingles = None,
    numbers: _Numbers = None,
    verify: _Verify = None,
    seed: _Seed = None,
    across: _Across = False,
    against: _Against = [],  # noqa: B006
    index: _Index = None,
    exact_only: _ExactOnly = False,
    max_cluster: _MaxCluster = None,
    max_removed: _MaxRemoved = 0.5,
    keeper: _Keeper = False,
    columns: _Columns = False,
    json_key: JsonKey = "text",
    text_column: TextColumn = None,
    text_documents: TextDocuments = "line",
    engine: EngineName = "auto",
    workers: Workers = 0,
    task_bytes: _TaskBytes = 0,
    max_bad_rows: MaxBadRows = 0,
    max_row_bytes: MaxRowBytes = MAX_ROW_BYTES,
    as_json: _AsJson = False,
    force: Force = False,
) -> None:
    """Remove exact duplicates and near-duplicates; what stays has a column duplicate_count.

    Example: kaiyuan-data dedup --input web=runs/web wiki=runs/wiki --output runs/unique --score score

    Near-duplicates share 70 % of their 5-grams of words, which is about 5 % edited words. Nothing is written to OUTPUT
    where a guard stops the run. A run that was stopped continues when the same command is given again.
    """
    from data_tools.dedup.command import run

    recipe = {
        "threshold": threshold,
        "ngram": ngram,
        "permutations": permutations,
        "bands": bands,
        "rows": rows,
        "shingles": shingles,
        "numbers": numbers,
        "verify": verify,
        "seed": seed,
    }
    lines = run(
        preset,
        recipe,
        reading={
            "json_key": json_key,
            "text_column": text_column,
            "text_documents": text_documents,
            "max_row_bytes": max_row_bytes,
        },
        engine=(engine, workers),
        rules={"across": across, "direct": keeper, "max_cluster": max_cluster},
        as_json=as_json,
        inputs=tuple(inputs),
        output=output,
        score=score,
        exact_only=exact_only,
        columns=columns,
        against=tuple(against),
        index=index,
        max_removed=max_removed,
        max_bad_rows=max_bad_rows,
        task_bytes=task_bytes,
        force=force,
    )
    print(*lines, sep="\n", end="\n" if lines else "")


@app.command(cls=SeveralValuesCommand)
def score(
    inputs: Annotated[
        list[str], paths("--input", "documents as for preprocess, each with NAME= before it or not")
    ] = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="folder of the scored documents")] = None,
    corpora: Annotated[
        list[str],
        typer.Option(
            "--corpus", parser=corpus_word, metavar="PATH", help="corpora to add columns to, as PREFIX or NAME=PREFIX"
        ),
    ] = [],  # noqa: B006
    scorers: Annotated[
        list[str], typer.Option("--scorer", help="KIND[=VALUE][,SETTING=VALUE]..., see kaiyuan-data scorer list")
    ] = [],  # noqa: B006
    filters: Annotated[
        list[str],
        typer.Option("--filter", help="keep documents for which this holds, as 'edu > 2 and language == \"de\"'"),
    ] = [],  # noqa: B006
    quantiles: Annotated[
        list[str],
        typer.Option("--quantile", help="COLUMN[,by=documents|tokens]: also its rank in the dataset, from 0 to 1"),
    ] = [],  # noqa: B006
    mask: Annotated[
        bool, typer.Option("--mask-personal-data", help="mask e-mail and IP addresses and telephone numbers first")
    ] = False,
    seed: Annotated[int, typer.Option(help="of the draws between equal scores, as in an order recipe")] = 1234,
    tokenizer_model: Annotated[
        Path | None, typer.Option(help="of the corpora, if not where their manifests say")
    ] = None,
    json_key: JsonKey = "text",
    text_column: TextColumn = None,
    text_documents: TextDocuments = "line",
    max_characters: MaxCharacters = 0,
    max_bad_rows: MaxBadRows = 0,
    max_row_bytes: MaxRowBytes = MAX_ROW_BYTES,
    engine: EngineName = "auto",
    workers: Workers = 0,
    task_bytes: Annotated[int, size("input a task; 0 fits it to the input")] = 0,
    force: Force = False,
) -> None:
    """Score documents into a folder, or add score columns to corpora without tokenizing them again.

    Example: kaiyuan-data score --input web=runs/text/web.jsonl --output runs/scored --scorer rules
    --scorer linear=edu.bin,name=edu --filter 'edu > 2' --quantile edu

    A run that was stopped continues when the same command is given again. What was dropped, and why, is in
    OUTPUT/dropped and in the manifest.
    """
    from data_tools.engines.choose import choose_engine
    from data_tools.scores.corpora import CorpusOptions, score_corpora
    from data_tools.scores.documents import ScoreOptions, score_documents
    from data_tools.steps.datasets import reading_settings

    if bool(inputs) == bool(corpora):
        raise UserError("score: name documents with --input, or corpora with --corpus")
    chosen = choose_engine(engine, workers)
    if corpora:
        if output or filters or mask:
            raise UserError(
                "score --corpus: a corpus stays where it is and whole; leave out --output, --filter, --mask..."
            )
        lines = score_corpora(corpora, CorpusOptions(scorers, quantiles, seed, tokenizer_model), chosen, force)
    else:
        if output is None:
            raise UserError("score: name the folder to write with --output")
        options = ScoreOptions(scorers, filters, quantiles, mask, seed, max_bad_rows)
        settings = reading_settings(json_key, text_column, text_documents, max_characters, max_row_bytes)
        lines = score_documents(inputs, output, options, settings, chosen, task_bytes, force)
    print(*(f"score: {line}" for line in lines), sep="\n")


@app.command(cls=SeveralValuesCommand)
def audit(
    subjects: Annotated[
        list[str],
        typer.Argument(
            parser=corpus_word, metavar="PATH", help="corpora, without .bin or .idx; or documents, as for score"
        ),
    ],
    scores: Annotated[list[str], typer.Option("--score", help="columns to look at")],
    by: Annotated[
        str | None, typer.Option(help="column that says where texts are from, as domain or source; or dataset")
    ] = None,
    quantiles: Annotated[int, typer.Option(help="rows of the portrait")] = 10,
    samples: Annotated[int, typer.Option(help="beginnings of documents in each quantile, on the page and in JSON")] = 3,
    most_documents: Annotated[int, count("of more, so many are drawn")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="of the draws")] = 1234,
    tokenizer_model: Annotated[
        Path | None, typer.Option(help="of the corpora, if not where their manifests say")
    ] = None,
    json_key: JsonKey = "text",
    text_column: TextColumn = None,
    output: Annotated[Path | None, typer.Option(help="also write an HTML page")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    force: Force = False,
) -> None:
    """Show whether scores rank quality or domains, how they agree, and what each quantile of a score holds.

    Example: kaiyuan-data audit runs/web_text_document --score edu rules_gopher --by domain --output runs/audit.html
    """
    from data_tools.scores.audit import AuditOptions
    from data_tools.scores.audit import audit as look
    from data_tools.steps.datasets import reading_settings

    options = AuditOptions(scores, by, quantiles, samples, most_documents, seed, tokenizer_model)
    print(look(subjects, options, reading_settings(json_key, text_column), output, as_json, force))


@scorer_app.command("list")
def scorer_list() -> None:
    """List the kinds of scorers with their settings.

    Example: kaiyuan-data scorer list
    """
    from data_tools.scores.describe import scorer_lines

    print(*scorer_lines(), sep="\n")


@scorer_app.command("train", cls=SeveralValuesCommand)
def scorer_train(
    positives: Annotated[list[str], paths("--positives", "documents that are wanted")],
    negatives: Annotated[list[str], paths("--negatives", "documents that are not")],
    output: Annotated[Path, typer.Option(help="the .bin model to write, for --scorer linear=...")],
    json_key: JsonKey = "text",
    text_column: TextColumn = None,
    word_ngrams: Annotated[int, typer.Option(min=1, help="longest run of words that is a feature")] = 2,
    dim: Annotated[int, typer.Option(min=1, help="size of the embeddings")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the documents")] = 5,
    learning_rate: Annotated[float, typer.Option(help="at the start; it falls to 0")] = 0.5,
    buckets: Annotated[
        int, typer.Option(help="rows for runs of words, 4 * dim bytes of the model each; 0: fits them to the input")
    ] = 0,
    seed: Annotated[int, typer.Option(help="of the order of the documents")] = 1234,
    force: Force = False,
) -> None:
    """Train a linear classifier: documents that are wanted against documents that are not.

    Example: kaiyuan-data scorer train --positives good.jsonl --negatives web.jsonl --output edu.bin
    """
    from data_tools.scores.training import TrainOptions, train_scorer
    from data_tools.steps.datasets import reading_settings

    options = TrainOptions(word_ngrams, dim, epochs, learning_rate, buckets, seed)
    print(train_scorer(positives, negatives, output, options, reading_settings(json_key, text_column), force))
