"""Training a byte-fallback BPE tokenizer whose round trip is lossless for every text.

Pieces are plain Unicode, cut by a pattern in the style of Qwen2; nothing is normalised. A character that is not in the
vocabulary becomes the tokens `<0x00>`..`<0xFF>` of its UTF-8 bytes. These are ordinary tokens: spelt out in a text
they stay six characters, because the pattern cuts between `<`, digits and letters. Id 0 ends a document, ids
1 to 256 are the bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_tools.reading.inputs import find_inputs
from data_tools.reading.limits import MAX_ROW_BYTES
from data_tools.reading.texts import texts
from data_tools.tokenizers.end_of_document import END_OF_DOCUMENT
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import (
    checksum,
    publish,
    read_sealed_json,
    temporary_beside,
    write_json,
    write_sealed_json,
)
from megatron_kaiyuan.forms import Checksum, FileName, Form, require_form
from megatron_kaiyuan.logs import shows_bars
from megatron_kaiyuan.outputs import Output, claim, identity_of, journal_of, require_name
from megatron_kaiyuan.progress import counted

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
SMALLEST_VOCABULARY = 512
_FORMAT = "kaiyuan-tokenizer"
# The trainer's time grows with the square of a word's length. A run without a cut (DNA, a rule of "====", blanks) is
# learnt from in pieces of that many characters, and no token becomes longer.
_LONGEST_WORD = 256
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
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    pieces = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{_LONGEST_WORD}}}"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pieces])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT, *BYTE_TOKENS],
        limit_alphabet=_alphabet_size(texts(), vocab_size // 3),
        show_progress=shows_bars(),
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"--vocab-size {vocab_size}: the text yields only {tokenizer.get_vocab_size()} tokens; "
            "give more --input or a smaller --vocab-size"
        )
    tokenizer.pre_tokenizer = split
    content = json.loads(tokenizer.to_str())
    # Only training needs the bytes as special tokens; as such they would be found in, and dropped from, texts.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == END_OF_DOCUMENT]
    return content


def train_and_save(
    inputs: Sequence[str | Path],
    json_key: str,
    vocab_size: int,
    output: Path,
    force: bool = False,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> str:
    """`kaiyuan-data tokenizer train`: read the text of files, train, and write `tokenizer.json`.

    Args:
        output: a new file, or a tokenizer that was trained on the same files.
        force: a tokenizer that was trained on other files may be replaced.

    Returns:
        A one-line summary.

    Raises:
        UserError: as `train_tokenizer`, or something else lies at `output` or beside it.
    """
    require_name(output, "--output")
    if output.suffix != ".json":
        raise UserError(f"--output {output}: names the file to write; write {output / 'tokenizer.json'}")
    identity = identity_of("tokenizer", [file.identity() for file in find_inputs(inputs)], json_key, vocab_size)
    place = Output(output, "a trained tokenizer", kind="file", files=_files(output))
    with claim(place, identity, _earlier, force=force):
        content = train_tokenizer(lambda: _counted_texts(inputs, json_key, max_row_bytes), vocab_size)
        save_tokenizer(content, output, identity)
    single = sum(len(token) == 1 for token in content["model"]["vocab"])
    return f"tokenizer train: {vocab_size:,} tokens, {single:,} of them single characters and 256 bytes, in {output}"


def _counted_texts(inputs: Sequence[str | Path], json_key: str, max_row_bytes: int) -> Iterator[str]:
    return (text for text, _ in counted(texts(inputs, json_key, max_row_bytes), "tokenizer train: read"))


def save_tokenizer(content: dict[str, Any], output: Path, identity: str = "") -> None:
    """Write `tokenizer.json`, the `tokenizer_config.json` by which transformers loads the folder, and a record.

    Args:
        output: the path of `tokenizer.json`, which the caller has claimed.
        identity: fingerprint of what it was trained on.
    """
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_DOCUMENT,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": 10**12,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    finals = _files(output)
    new = [temporary_beside(path) for path in finals]
    try:
        for path, written in zip(new, (configuration, content), strict=False):
            write_json(path, written)
        checksums = {final.name: checksum(path) for final, path in zip(finals[:2], new[:2], strict=True)}
        write_sealed_json(new[2], {"format": _FORMAT, "version": 1, "identity": identity, "files": checksums})
        publish(list(zip(new, finals, strict=True)), journal_of(output))
    finally:
        if not journal_of(output).exists():
            for path in new:
                path.unlink(missing_ok=True)


def _files(output: Path) -> tuple[Path, Path, Path]:
    return output.with_name("tokenizer_config.json"), output, output.with_name(f"{output.stem}.manifest.json")


class _Record(Form):
    identity: str
    files: dict[FileName, Checksum]


def _earlier(output: Output) -> str | None:
    *files, record = output.files
    there = [path for path in output.files if path.exists()]
    if not there:
        return None
    try:
        content = read_sealed_json(record, "record of a tokenizer")
    except UserError:
        content = {}
    if content.get("format") != _FORMAT:
        raise output.in_the_way(there[0], "exists, and no record beside it says that this command wrote it")
    recorded = require_form(record, content, _Record, "move it away, or name another --output")
    for path in files:
        if path.exists() and checksum(path) != recorded.files.get(path.name):
            raise output.in_the_way(path, "was changed after it was written")
    return recorded.identity


def _alphabet_size(texts: Iterable[str], largest: int) -> int:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return min(largest, sum(count >= _RAREST_CHARACTER for count in counts.values()))
