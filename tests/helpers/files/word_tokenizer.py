"""A tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path


def write_tokenizer(folder: Path, vocabulary: int) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0, "<unk>": 1, **{f"w{index}": index for index in range(2, vocabulary)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder
