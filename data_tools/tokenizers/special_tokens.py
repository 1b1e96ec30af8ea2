"""Special tokens that are words of the model's own vocabulary, so that it finds them in texts that spell them out.

The library looks for added tokens in a text before the model sees it, and leaves special ones alone when it is asked
to. But what is left is text to the model, and the models of T5, XLM-R or ALBERT (Unigram) and lists of words
(WordLevel, WordPiece) take any entry of their vocabulary. sentencepiece, from which such Unigram models come, never
finds one of its control symbols in a text; and so it is here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

_MODELS = ("Unigram", "WordLevel", "WordPiece")


def hide_special(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a tokenizer.json in which texts find no special token; None where they find none as it is.

    The entries stay in their places, so that no id changes, under names that no text holds.
    """
    model = content["model"]
    if model.get("type") not in _MODELS:
        return None
    # What is unknown has its own name in these two; a Unigram model has a number.
    special = {token["content"] for token in content.get("added_tokens") or [] if token.get("special")}
    special -= {None if model["type"] == "Unigram" else model.get("unk_token")}
    # The library takes a model without one, of no entries.
    vocabulary = model.get("vocab") or {}
    found = special & {entry[0] for entry in vocabulary} if isinstance(vocabulary, list) else special & set(vocabulary)
    if not found:
        return None
    mark = secrets.token_hex(16)
    name = {token: f"{mark}{number}" for number, token in enumerate(sorted(found))}
    if isinstance(vocabulary, list):
        hidden: Any = [[name.get(token, token), score] for token, score in vocabulary]
    else:
        hidden = {name.get(token, token): number for token, number in vocabulary.items()}
    added = [token for token in content["added_tokens"] if token["content"] not in found]
    return {**content, "added_tokens": added, "post_processor": None, "model": {**model, "vocab": hidden}}
