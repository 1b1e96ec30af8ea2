"""A sequence classifier in batches against one row at a time, without padding."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from data_tools.scores.parse import parse_scorer
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.real_texts import batch_of, real_texts
from tests.helpers.training.tiny_model import write_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def write_tokenizer(folder: Path, pad: bool = True) -> int:
    """Words of some texts; [CLS] words [SEP]."""
    words = sorted({word for text in real_texts(25) for word in text.lower().split()})[:500]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate([*specials, *words])}, "[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | ({"pad_token": "[PAD]"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return len(specials) + len(words)


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=write_tokenizer(folder), **SIZES, max_position_embeddings=64, initializer_range=0.5,
                        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@functools.cache
def loaded(folder: Path) -> tuple[Any, Any]:
    network = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), network


def one_at_a_time(folder: Path, text: str, length: int) -> torch.Tensor:
    tokenizer, network = loaded(folder)
    ids = tokenizer(text)["input_ids"]
    ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    with torch.no_grad():
        return network(input_ids=torch.tensor([ids])).logits[0].double()


@pytest.mark.parametrize(("tokens", "length"), [(512, 64), (20, 20)])
def test_batches_give_what_single_rows_give(two_labels: Path, tokens: int, length: int) -> None:
    texts = list(real_texts(24))
    scorer = parse_scorer(f"classifier={two_labels},label=good,device=cpu,batch=5,tokens={tokens}")
    scores = scorer.score(batch_of([*texts, None]))["classifier"].to_pylist()
    assert scores.pop() is None
    expected = [float(one_at_a_time(two_labels, text, length).softmax(0)[1]) for text in texts]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert max(scores) - min(scores) > 0.1
    by_number = parse_scorer(f"classifier={two_labels},label=0,device=cpu,name=bad,tokens={tokens}")
    assert by_number.score(batch_of(texts))["bad"].to_pylist() == pytest.approx(
        [1 - score for score in scores], abs=1e-6
    )
    assert scorer.score(batch_of([]))["classifier"].to_pylist() == []


def test_a_single_output_is_the_score(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=write_tokenizer(tmp_path),
        **SIZES,
        max_position_embeddings=34,
        num_labels=1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=0.5,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    texts = list(real_texts(20))
    scores = parse_scorer(f"classifier={tmp_path},device=cpu,batch=3").score(batch_of(texts))["classifier"].to_pylist()
    # Of RoBERTa's 34 positions the first lies before the text: 33 tokens.
    assert scores == pytest.approx([float(one_at_a_time(tmp_path, text, 33)[0]) for text in texts], abs=1e-5)
    with pytest.raises(UserError, match="it has one output"):
        parse_scorer(f"classifier={tmp_path},label=good,device=cpu").score(batch_of([]))


def test_wrong_folders_are_one_line(tmp_path: Path, two_labels: Path) -> None:
    with pytest.raises(UserError, match=r"label=None is not one of the classifier's; write one of bad, good"):
        parse_scorer(f"classifier={two_labels},device=cpu").score(batch_of([]))
    with pytest.raises(UserError, match=r"config\.json is missing"):
        parse_scorer(f"classifier={tmp_path},device=cpu").score(batch_of([]))
    with pytest.raises(UserError, match="device=nowhere: not available here"):
        parse_scorer(f"classifier={two_labels},device=nowhere").score(batch_of([]))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in two_labels.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:-40] if "safetensors" in file.name else file.read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read") as caught:
        parse_scorer(f"classifier={damaged},device=cpu").score(batch_of([]))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"not a sequence classifier: its weights lack|cannot load this"):
        parse_scorer(f"classifier={write_model(tmp_path / 'causal')},device=cpu").score(batch_of([]))
    unpadded = tmp_path / "unpadded"
    config = BertConfig(vocab_size=write_tokenizer(unpadded, pad=False), **SIZES)
    BertForSequenceClassification(config).save_pretrained(unpadded)
    with pytest.raises(UserError, match=r"no padding token; set pad_token in tokenizer_config\.json"):
        parse_scorer(f"classifier={unpadded},device=cpu,label=0").score(batch_of([]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_attention_heads": -2}, r"its network cannot be run as config\.json describes it"),
        ({"hidden_dropout_prob": float("nan")}, "its network cannot be run .*dropout probability"),
        ({"id2label": {"0": "bad", "7": "good"}}, "id2label of config.json names output 7, the network has 2"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_one_line(
    tmp_path: Path, two_labels: Path, changes: dict[str, Any], expected: str
) -> None:
    """Its weights load; only running the network shows it."""
    shutil.copytree(two_labels, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=expected):
        parse_scorer(f"classifier={tmp_path / 'model'},label=good,device=cpu").score(batch_of(["a text"]))


def test_a_tokenizer_of_more_ids_than_the_network_is_one_line(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=write_tokenizer(tmp_path) - 1, **SIZES)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the tokenizer has the id \d+, the network knows \d+"):
        parse_scorer(f"classifier={tmp_path},label=0,device=cpu").score(batch_of(["a text"]))
