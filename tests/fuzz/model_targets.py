"""Models that score text: fastText's, KenLM's `.arpa`, pieces of sentencepiece, and a folder with a classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.fuzz.tokenizer_targets import _sentencepiece
from tests.helpers.files.mutations import mutate

_TEXTS = pa.record_batch({"text": pa.array(["low lower newest", "", None, "new\nlow"], pa.large_string())})
_ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.2\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.8\tlow\t-0.2
-0.7\tnew\t-0.2

\\2-grams:
-0.5\t<s> low
-0.4\tlow new
-0.3\tnew </s>

\\end\\
"""


def _fasttext(folder: Path) -> Path:
    from data_tools.scores.train_linear import train_linear

    (folder / "made").mkdir()
    path = folder / "made" / "model.bin"
    train_linear(["low lower newest words"] * 9, ["spam spam buy now"] * 9, path, dim=2, buckets=3, epochs=1)
    return path


def _arpa(folder: Path) -> Path:
    (folder / "made").mkdir()
    (folder / "made" / "model.arpa").write_text(_ARPA)
    return folder / "made" / "model.arpa"


def _linear(path: Path) -> Any:
    from data_tools.scores.fasttext_model import FastTextModel

    FastTextModel(path).probabilities(_TEXTS.column("text"))


def _perplexity(path: Path) -> Any:
    from data_tools.scores.kinds import perplexity

    perplexity._load_model.cache_clear()
    perplexity.PerplexityScorer(path).score(_TEXTS)


def _pieces(path: Path) -> Any:
    from data_tools.scores.kinds import perplexity

    perplexity._load_pieces.cache_clear()
    arpa = path.parent.with_name("arpa")
    if not arpa.exists():
        arpa.mkdir()
        _arpa(arpa)
    perplexity.PerplexityScorer(arpa / "made" / "model.arpa", path).score(_TEXTS)


def _made_pieces(folder: Path) -> Path:
    (folder / "made").mkdir()
    return _sentencepiece(folder / "made")


def _classifier(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

        inner = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "low": 2, "new": 3}, "[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
        tokenizer.save_pretrained(folder / "model")
        sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4}
        config = BertConfig(vocab_size=4, **sizes, max_position_embeddings=8, num_labels=2)
        BertForSequenceClassification(config).save_pretrained(folder / "model")
        return folder / "model" / name

    return make


def _classify(path: Path) -> Any:
    from data_tools.scores.kinds import classifier

    classifier._load.cache_clear()
    classifier.ClassifierScorer(path.parent, label="1", device="cpu").score(_TEXTS)


TARGETS = (
    Target("model-fasttext", _fasttext, mutate, [_linear]),
    Target("model-arpa", _arpa, mutate, [_perplexity]),
    Target("model-pieces", _made_pieces, mutate, [_pieces]),
    Target("model-classifier", _classifier("config.json"), json_damage.plain, [_classify]),
)
