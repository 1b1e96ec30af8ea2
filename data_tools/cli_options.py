"""Options that several commands share, and options that take numbers and paths as this project reads them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from data_tools.engines.choose import HELP as ENGINE_HELP
from data_tools.reading.limits import ROW_BYTES_HELP
from megatron_kaiyuan.command_line import amount_option, count_option, size_option
from megatron_kaiyuan.paths import path_word


def amount(help_text: str) -> Any:
    """An option that takes a number of what is counted, not only whole ones."""
    return typer.Option(parser=amount_option, metavar="NUMBER", help=help_text)


def count(help_text: str) -> Any:
    """An option that takes a number of tokens, documents, characters or rows."""
    return typer.Option(parser=count_option, metavar="NUMBER", help=help_text)


def size(help_text: str) -> Any:
    """An option that takes a size or a length."""
    return typer.Option(parser=size_option, metavar="NUMBER", help=help_text)


def paths(name: str, help_text: str, metavar: str = "PATH") -> Any:
    """An option that takes files, folders, patterns or URLs."""
    return typer.Option(name, parser=path_word, metavar=metavar, help=help_text)


EngineName = Annotated[str, typer.Option(help=ENGINE_HELP)]
Workers = Annotated[int, typer.Option(help="processes; 0: one a core. The result is the same for any number")]
JsonKey = Annotated[str, typer.Option(help="field or column that holds the text")]
TextColumn = Annotated[str | None, typer.Option(help="column of Parquet files, if not named as the JSON field")]
TextDocuments = Annotated[str, typer.Option(help="what is a document in a .txt file: line or file")]
MaxCharacters = Annotated[int, count("leave out rows with a longer text; 0: no limit")]
MaxBadRows = Annotated[int, count("rows without valid JSON, text or fields that may be left out")]
MaxRowBytes = Annotated[int, size(ROW_BYTES_HELP)]
