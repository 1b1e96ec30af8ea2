"""A random Gemma 3 of a few thousand parameters with a word-level tokenizer, and corpora in Megatron's form."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

VOCABULARY = 320


def write_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        hidden_activation="silu",
        layer_types=["full_attention"] * 2,
        sliding_window=256,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        final_logit_softcapping=30.0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.3,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Bytes as tokens: 256 of them behind the end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {"<|endoftext|>": 0, **{letter: index for index, letter in enumerate(alphabet, start=1)}}
    inner = Tokenizer(models.BPE(vocab=ids, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>").save_pretrained(folder)


def write_corpus(prefix: Path, documents: Sequence[Sequence[int]]) -> Path:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(list(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def random_documents(count: int, seed: int, longest: int = 90) -> list[list[int]]:
    """Ids of a skewed distribution, end-of-text last."""
    drawn = random.Random(seed)
    return [
        [min(int(drawn.expovariate(0.03)) + 1, VOCABULARY - 1) for _ in range(drawn.randint(1, longest))] + [0]
        for _ in range(count)
    ]


def write_text(path: Path, domain: str, documents: int, words: int, seed: int) -> Path:
    drawn = random.Random(seed)
    vocabulary = ["alpha", "beta", "gamma", "delta", "{{ x }}", "中文", "42", "zeta\n"]
    with open(path, "w", encoding="utf-8") as file:
        for index in range(documents):
            text = " ".join(drawn.choice(vocabulary) for _ in range(words))
            row = {"text": text, "domain": domain, "source": f"{domain}/{index}", "score": 0.5}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
