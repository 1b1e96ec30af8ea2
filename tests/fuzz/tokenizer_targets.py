"""Tokenizers: tokenizer.json of three kinds, the files beside it, sentencepiece models and tiktoken files."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate

_TEXTS = ["low lower lowest", "", "new 世界\n", "<|endoftext|>"]
_END = "<|endoftext|>"
# Values that the library has a meaning for, in the wrong place.
_RULES: tuple[Any, ...] = (
    {"type": "ByteLevel"},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Split", "pattern": {"Regex": "(?:a|a)*b("}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": True},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []},
    {
        "type": "WordPiece",
        "unk_token": "no",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 1,
        "vocab": {},
    },
    {"type": "Truncate", "direction": "Right", "max_length": 0, "stride": 9},
    {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9},
    {"type": "FixedLength", "length": 0},
    {"type": "Unigram", "unk_id": 9, "vocab": []},
)


def damage(raw: bytes, seed: int) -> bytes:
    generator = random.Random(seed)
    if generator.random() < 0.15:
        return mutate(raw, seed)
    content = json.loads(raw)
    if generator.random() < 0.3:
        name = generator.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "truncation"))
        content[name] = generator.choice(_RULES)
        nested = generator.choice((0, 0, 0, 5, 100, 5000))
        if nested and name != "model":
            inner = json.dumps(content[name])
            text = json.dumps({**content, name: "HERE"})
            key = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(name, "processors")
            whole = f'{{"type": "Sequence", "{key}": [' * nested + inner + "]}" * nested
            return text.replace('"HERE"', whole).encode()
        return json.dumps(content).encode()
    return json.dumps(json_damage.damaged(content, generator), ensure_ascii=generator.random() < 0.8).encode(
        errors="replace"
    )


def _bpe(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {_END: 0, **{letter: at for at, letter in enumerate(letters, 1)}, "lo": 257, "low": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("l", "o"), ("lo", "w")]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _written(tokenizer, folder)


def _unigram(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = [("<unk>", 0.0), ("▁low", -2.0), ("er", -2.5), ("est", -3.0), *((letter, -5.0) for letter in "lowernst▁")]
    tokenizer = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _written(tokenizer, folder)


def _written(tokenizer: Any, folder: Path) -> Path:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(_END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "added_tokens_decoder": {str(tokenizer.token_to_id(_END)): {"content": _END, "special": True}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": _END}}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.token_to_id(_END)]}))
    return folder / "tokenizer.json"


def _beside(name: str) -> Callable[[Path], Path]:
    return lambda folder: _bpe(folder).with_name(name)


def _sentencepiece(folder: Path) -> Path:
    import sentencepiece

    model = io.BytesIO()
    sentences = [f"low lower lowest new newer {number}" for number in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, model_type="bpe", byte_fallback=False
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder / "tokenizer.model"


def _tiktoken(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        ranks = [bytes([byte]) for byte in range(256)] + [b"lo", b"low"]
        lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)]
        (folder / "x.tiktoken").write_bytes(b"".join(lines))
        beside = {"pattern": "cl100k_base", "special_tokens": {_END: 258}, "eod_token": _END}
        (folder / "x.tiktoken.json").write_text(json.dumps(beside))
        return folder / name

    return make


def _encode(path: Path) -> Any:
    from data_tools.tokenizers.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(path.parent)
    tokenizer.load()
    ids = tokenizer.encode_batch(_TEXTS)
    tokenizer.encode_flat(_TEXTS, append_eod=True)
    for some in ids:
        tokenizer.decode(some)
    json.dumps(tokenizer.description())


def _transformers(path: Path) -> Any:
    from megatron_kaiyuan.export.loading import load_tokenizer

    load_tokenizer(path.parent)


TARGETS = (
    Target("tokenizer-bpe", _bpe, damage, [_encode]),
    Target("tokenizer-unigram", _unigram, damage, [_encode]),
    Target("tokenizer-transformers", _bpe, damage, [_transformers]),
    Target("tokenizer-config", _beside("tokenizer_config.json"), json_damage.plain, [_encode, _transformers]),
    Target("tokenizer-special", _beside("special_tokens_map.json"), json_damage.plain, [_encode, _transformers]),
    Target("tokenizer-generation", _beside("generation_config.json"), json_damage.plain, [_encode]),
    Target("tokenizer-sentencepiece", _sentencepiece, mutate, [_encode]),
    Target("tokenizer-tiktoken", _tiktoken("x.tiktoken"), mutate, [_encode]),
    Target("tokenizer-tiktoken-json", _tiktoken("x.tiktoken.json"), json_damage.plain, [_encode]),
)
