"""A corpus whose metadata grows columns: tokens and index stay, sidecar and manifest are replaced at once.

The manifest notes in `made` how each column was made. `identity` becomes one of the corpus with its columns, so that
`preprocess` and `merge` do not take the corpus for what they wrote and replace it; `base_identity` keeps the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.corpora.corpus_files import manifest_path, read_manifest, write_errors
from data_tools.corpora.sidecar import SidecarWriter, sidecar_rows, sidecar_schema
from megatron_kaiyuan.data.metadata import AGAIN, metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, publish, temporary_beside, write_sealed_json
from megatron_kaiyuan.outputs import identity_of, journal_of

# What was made of the text, and what of other columns; as JSON.
Made = Mapping[str, Mapping[str, Any]]


def grown_columns(manifest: Mapping[str, Any], new: Mapping[str, pa.DataType]) -> tuple[list[str], list[str]]:
    """Names of the scores and of the text columns of a corpus that gets new columns, or other ones in place of its own.

    Args:
        new: float64 or string by name.
    """
    numbers = {name: pa.types.is_floating(kind) for name, kind in new.items()}
    scores = [name for name in manifest["scores"] if numbers.get(name, True)]
    columns = [name for name in manifest.get("columns", []) if not numbers.get(name, False)]
    scores += [name for name, number in numbers.items() if number and name not in scores]
    columns += [name for name, number in numbers.items() if not number and name not in columns]
    return scores, columns


def add_columns(prefix: Path, new: Mapping[str, pa.DataType], values: Iterable[pa.Table], made: Made) -> None:
    """Write the sidecar with new columns, and seal the corpus again.

    A process that is killed leaves the old sidecar, or what the next command that claims the corpus finishes.

    Args:
        prefix: of a corpus that the caller has claimed.
        new: type by name; a column that is there is replaced.
        values: the new columns, in the order of the sequences, in pieces of any length.
        made: how each new column was made.

    Raises:
        UserError: rows are too few or too many, or the disk is full.
    """
    manifest = read_manifest(prefix)
    scores, columns = grown_columns(manifest, new)
    path, temporary = metadata_path(prefix), temporary_beside(metadata_path(prefix))
    sealed = temporary_beside(manifest_path(prefix))
    journal = journal_of(prefix)
    try:
        with write_errors(prefix):
            _write(path, temporary, sidecar_schema(scores, columns), new, values)
            write_sealed_json(sealed, _grown(manifest, scores, columns, made, path, temporary))
            publish([(temporary, path), (sealed, manifest_path(prefix))], journal)
    except BaseException:
        if not journal.exists():
            temporary.unlink(missing_ok=True)
            sealed.unlink(missing_ok=True)
        raise


def _write(
    path: Path, temporary: Path, schema: pa.Schema, new: Mapping[str, pa.DataType], values: Iterable[pa.Table]
) -> None:
    kept = [name for name in schema.names if name not in new]
    with SidecarWriter(temporary, schema) as writer:
        pieces = iter(values)
        waiting = pa.schema(list(new.items())).empty_table()
        for rows in sidecar_rows(path, kept):
            while len(waiting) < len(rows):
                piece = next(pieces, None)
                if piece is None:
                    raise UserError(f"{path}: has more rows than there are new values; {AGAIN}")
                waiting = pa.concat_tables([waiting, piece.select(list(new))])
            table = pa.Table.from_batches([rows])
            for name in new:
                table = table.append_column(name, waiting.column(name).slice(0, len(rows)))
            writer.write(table.select(schema.names).combine_chunks())
            waiting = waiting.slice(len(rows))
        if len(waiting) or any(len(piece) for piece in pieces):
            raise UserError(f"{path}: has fewer rows than there are new values; {AGAIN}")


def _grown(
    manifest: Mapping[str, Any], scores: Sequence[str], columns: Sequence[str], made: Made, path: Path, temporary: Path
) -> dict[str, Any]:
    all_made = {**manifest.get("made", {}), **made}
    base = manifest.get("base_identity", manifest.get("identity", ""))
    entry = {"bytes": temporary.stat().st_size, "checksum": checksum(temporary)}
    grown = {
        **manifest,
        "scores": list(scores),
        "columns": list(columns),
        "identity": identity_of("grown", base, all_made),
        "base_identity": base,
        "made": all_made,
    }
    files = {**manifest["files"], path.name: entry}
    return {**{name: value for name, value in grown.items() if name != "files"}, "files": files}
