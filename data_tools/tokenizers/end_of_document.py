"""Which token ends a document: what the files of a tokenizer's folder name, where they agree.

A corpus whose documents end with another token than the model's is wrong in every document, and nothing shows it later.
So files that disagree, or that cannot be read, are refused; `--eod-token` settles it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.tokenizers.tokenizer_formats import Reference
from megatron_kaiyuan.errors import UserError, excerpt

END_OF_DOCUMENT = "<|endoftext|>"
_USUAL_ENDS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<EOD>")
_OPTION = "--eod-token"
_REMEDY = f"make the files agree, or name the right token with {_OPTION}"
_NAME_THE_END = ("tokenizer_config.json", "special_tokens_map.json")
_NUMBER_THE_END = ("config.json", "generation_config.json")


class NamedEnd(NamedTuple):
    """A token that `source`, a file or the option, names as the end of a document."""

    token: str
    source: str


def named_end(tokenizer: Path, wanted: str | None) -> NamedEnd | None:
    """The token that is wanted, else the one that the files beside the tokenizer name; None where there is none.

    Raises:
        UserError: a file cannot be read, or two name different tokens.
    """
    if wanted:
        return NamedEnd(wanted, _OPTION)
    found: NamedEnd | None = None
    for name in _NAME_THE_END:
        path = tokenizer.with_name(name)
        value = _read(path).get("eos_token")
        token = value.get("content") if isinstance(value, dict) else value
        if value is None:
            continue
        if not isinstance(token, str):
            raise UserError(f"{path}: 'eos_token' is {excerpt(repr(value))}, not a token; {_REMEDY}")
        found = _agreed(found, NamedEnd(token, str(path)))
    return found


def find_end(reference: Reference, named: NamedEnd | None) -> str:
    """The token that ends a document: the named one, else the tokenizer's own, else a usual one of the vocabulary.

    Raises:
        UserError: the files disagree about the token or its id, or the vocabulary does not have it.
    """
    wanted = named is not None and named.source == _OPTION
    if reference.own_end is not None and not wanted:
        named = _agreed(named, NamedEnd(reference.own_end, str(reference.path)))
    candidates = [named.token] if named else _USUAL_ENDS
    end = next((token for token in candidates if token in reference.vocabulary), None)
    if end is None and named and not wanted:
        raise UserError(
            f"{named.source}: names {excerpt(repr(named.token))} as the end of a document, which "
            f"{reference.path} does not have; {_REMEDY}"
        )
    if end is None:
        raise UserError(
            f"{reference.path}: its vocabulary has no end-of-document token {' or '.join(candidates)}; "
            f"name the right one with {_OPTION}"
        )
    if not wanted:
        _check_id(reference, end, named.source if named else str(reference.path))
    return end


def _agreed(one: NamedEnd | None, other: NamedEnd) -> NamedEnd:
    if one and one.token != other.token:
        raise UserError(
            f"{one.source}: names {excerpt(repr(one.token))} as the end of a document, and {other.source} "
            f"{excerpt(repr(other.token))}; {_REMEDY}"
        )
    return one or other


def _check_id(reference: Reference, end: str, source: str) -> None:
    """Refuse an end to which a file beside the tokenizer gives another id."""
    token_id = reference.vocabulary[end]
    for path, ids in _ids_of(reference.path, end):
        if token_id not in ids:
            raise UserError(
                f"{source}: names {end!r} as the end of a document, the id {token_id} of {reference.path}, and {path} "
                f"the id {excerpt(' or '.join(map(str, ids)))}; {_REMEDY}"
            )


def _ids_of(tokenizer: Path, end: str) -> list[tuple[Path, list[Any]]]:
    """The ids that files beside the tokenizer give to this token, or to whatever ends a document."""
    found: list[tuple[Path, list[Any]]] = []
    for name in _NUMBER_THE_END:
        ids = _read(tokenizer.with_name(name)).get("eos_token_id")
        if ids is not None:
            found.append((tokenizer.with_name(name), ids if isinstance(ids, list) else [ids]))
    added = tokenizer.with_name("added_tokens.json")
    if end in (numbers := _read(added)):
        found.append((added, [numbers[end]]))
    configuration = tokenizer.with_name("tokenizer_config.json")
    decoder = _read(configuration).get("added_tokens_decoder")
    items = decoder.items() if isinstance(decoder, dict) else ()
    ids = [
        int(key) for key, token in items if isinstance(token, dict) and token.get("content") == end and key.isdigit()
    ]
    return [*found, (configuration, ids)] if ids else found


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend it, or name the right token with {_OPTION}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object; mend it, or name the right token with {_OPTION}")
    return content
