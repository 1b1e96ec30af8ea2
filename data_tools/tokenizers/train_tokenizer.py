"""Training a byte-fallback BPE tokenizer whose round trip is lossless for every text.

Pieces are plain Unicode, cut by a pattern in the style of Qwen2; nothing is normalised. A character that is not in the
vocabulary becomes the tokens `<0x00>`..`<0xFF>` of its UTF-8 bytes. These are ordinary tokens: spelt out in a text
they stay six characters, because the pattern cuts between `<`, digits and letters. Id 0 ends a document, ids
1 to 256 are the bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_tools.tokenizers.end_of_document import END_OF_DOCUMENT
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_json

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
SMALLEST_VOCABULARY = 512
# A character rarer than this is cheaper as three bytes than as a row of the embedding that is hardly ever trained.
_RAREST_CHARACTER = 10


def train_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int) -> dict[str, Any]:
    """Train on the texts, which are read twice, and return the content of `tokenizer.json`.

    At most a third of the vocabulary goes to single characters, the commonest first.

    Raises:
        UserError: the vocabulary is too small, or the text is too little to fill it.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"--vocab-size {vocab_size}: must be at least {SMALLEST_VOCABULARY}, 256 of it are bytes")
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT, *BYTE_TOKENS],
        limit_alphabet=_alphabet_size(texts(), vocab_size // 3),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"--vocab-size {vocab_size}: the text yields only {tokenizer.get_vocab_size()} tokens; "
            "give more --input or a smaller --vocab-size"
        )
    content = json.loads(tokenizer.to_str())
    # Only training needs the bytes as special tokens; as such they would be found in, and dropped from, texts.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == END_OF_DOCUMENT]
    return content


def save_tokenizer(content: dict[str, Any], output: Path) -> None:
    """Write `tokenizer.json`, and beside it the `tokenizer_config.json` by which transformers loads the folder."""
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_DOCUMENT,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": 10**12,
    }
    write_json(output.with_name("tokenizer_config.json"), configuration)
    write_json(output, content)


def _alphabet_size(texts: Iterable[str], largest: int) -> int:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return min(largest, sum(count >= _RAREST_CHARACTER for count in counts.values()))
