"""Loss of documents under an exported model, against one prediction at a time."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_tools.scores.parse import parse_scorer
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.real_texts import batch_of, real_texts
from tests.helpers.training.tiny_model import write_model

TEXTS = [*(text[:300] for text in real_texts(22)), "é", "x" * 256, "y" * 257]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("exported"))


@functools.cache
def loaded(folder: Path) -> tuple[Any, Any]:
    network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), network


def plain_loss(folder: Path, text: str, context: int, limit: int | None = None) -> tuple[float, int]:
    """Nats and tokens: token i of a document is predicted from those of its window before it."""
    tokenizer, network = loaded(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)[:limit]
    stream, nats = [tokenizer.eos_token_id, *ids], 0.0
    with torch.no_grad():
        for start in range(0, len(ids), context):
            window = torch.tensor([stream[start : start + context]])
            log_p = network(window).logits[0].double().log_softmax(-1)
            for offset, token in enumerate(ids[start : start + context]):
                nats -= float(log_p[offset, token])
    return nats, len(ids)


@pytest.mark.parametrize("setting", ["", ",seq_length=50", ",seq_length=1", ",tokens=70,seq_length=40"])
def test_loss_is_that_of_one_prediction_at_a_time(model: Path, setting: str) -> None:
    scorer = parse_scorer(f"loss={model},batch=4,device=cpu{setting}")
    scores = scorer.score(batch_of([*TEXTS, None]))
    assert {name: column.type for name, column in scores.items()} == scorer.columns
    context, limit = scorer.seq_length or 256, scorer.tokens  # type: ignore[attr-defined]
    for row, text in enumerate(TEXTS):
        if context == 1 and row % 5:
            continue  # slow
        nats, tokens = plain_loss(model, text, context, limit)
        per_byte, per_token = (scores[name][row].as_py() for name in ("loss", "loss_per_token"))
        if not tokens:
            assert (per_byte, per_token) == (None, None)
            continue
        assert per_token == pytest.approx(nats / tokens, rel=1e-5)
        if limit is None or text.isascii():  # the tokenizer's tokens are bytes
            assert per_byte == pytest.approx(nats / min(len(text.encode()), limit or 1 << 30), rel=1e-5)
    assert scores["loss"][len(TEXTS)].as_py() is None
    assert len(scorer.score(batch_of([]))["loss"]) == 0


def test_wrong_folders_are_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seq_length=300, but .* admits 256 tokens at most"):
        parse_scorer(f"loss={model},seq_length=300,device=cpu").score(batch_of([]))
    with pytest.raises(UserError, match=r"config\.json is missing"):
        parse_scorer(f"loss={tmp_path / 'absent'},device=cpu").score(batch_of([]))
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [
        {"id": 320, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
    ] + [{"id": index, "content": f"<{index}>", "single_word": False, "lstrip": False, "rstrip": False,
          "normalized": False, "special": True} for index in range(257, 320)]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="the tokenizer has 321 ids, the model 320; export again"):
        parse_scorer(f"loss={tmp_path},device=cpu").score(batch_of([]))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a readable tokenizer\.json") as caught:
        parse_scorer(f"loss={tmp_path},device=cpu,batch=2").score(batch_of([]))
    assert "\n" not in str(caught.value)
