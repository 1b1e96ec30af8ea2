"""Fast engines: used when their ids are the reference's, refused with the place of the first difference when not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.qwen_vocabulary import write_qwen, write_tiktoken
from data_tools.reading.texts import texts
from data_tools.tokenizers.engines import (
    ENGINES,
    Unsupported,
    build,
    corner_difference,
    depends_on_tables,
    first_difference,
)
from data_tools.tokenizers.tiktoken_files import KNOWN
from data_tools.tokenizers.tokenizer import TextTokenizer
from data_tools.tokenizers.tokenizer_formats import Reference, open_reference
from megatron_kaiyuan.errors import UserError

pytest.importorskip("gigatoken")
pytest.importorskip("quicktok", reason="quicktok-v1 ships the vocabularies")

# Two of this letter of Unicode 16 compose to another one; the marks of N'Ko are not in the order of normal form C as
# Unicode 11 has it. gigatoken 0.10 and Hugging Face tokenizers, with tables of other age, differ on both.
DOUBTFUL = ["\U0001611e\U0001611e", "\u07f3-\u07fd\u07f3 \u07cf\u07f3\u07fd", "e\u0301"]
PARTS = [*DOUBTFUL, "<|endoftext|>", "<think>", " ", "\n", "中文字", "，", "don't", "12", "x"]
some_texts = st.lists(
    st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cn"])) | st.sampled_from(PARTS)
)


@pytest.fixture(scope="module")
def path(harvested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer built like Qwen's: normalised, cut by its pattern, merged from bytes, with added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(KNOWN["qwen"].pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text for text, _ in texts([harvested / "code.train.jsonl"], "text")), trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    path = tmp_path_factory.mktemp("byte_level") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def reference(path: Path) -> Reference:
    return open_reference(path)


@pytest.fixture(scope="module")
def sample(harvested: Path) -> list[str]:
    found = [text for text, _ in texts(sorted(harvested.glob("*.train.jsonl")), "text")]
    return [*found, "".join(PARTS), "混合 mixed 文本。" * 50, "中文，" * 500, ""]


@pytest.mark.parametrize("name", ENGINES)
def test_ids_are_the_references(name: str, reference: Reference, sample: list[str]) -> None:
    engine = build(name, reference)
    assert first_difference(engine, reference, sample) is None

    @settings(deadline=None)
    @given(some_texts)
    def agrees(parts: list[str]) -> None:
        batch = ["".join(parts), *parts]
        for found, expected in zip(engine.encode(batch), reference.encode(batch), strict=True):
            assert np.array_equal(found, expected)

    agrees()


def test_auto_takes_the_fastest_proven_engine(path: Path, sample: list[str]) -> None:
    tokenizer, plain = TextTokenizer(path), TextTokenizer(path, engine="reference")
    assert tokenizer.engine == "reference"
    assert tokenizer.prove(sample).startswith("engine: gigatoken, its ids equal those of Hugging Face")
    assert tokenizer.engine == "gigatoken"
    for mine, theirs in zip(tokenizer.encode_flat(sample, True), plain.encode_flat(sample, True), strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    assert plain.prove(sample) == "engine: Hugging Face tokenizers"
    assert TextTokenizer(path, engine=tokenizer.engine).encode_batch(sample) == plain.encode_batch(sample)


def test_the_real_qwen_tokenizer(tmp_path: Path, sample: list[str]) -> None:
    tokenizer = TextTokenizer(write_qwen(tmp_path).parent)
    assert tokenizer.prove(sample).startswith("engine: gigatoken")
    assert (tokenizer.vocab_size, tokenizer.eod_id, len(tokenizer.byte_ids)) == (151669, 151643, 128)
    assert tokenizer.encode_flat(["你好"], append_eod=True)[0].tolist() == [108386, 151643]
    assert max(tokenizer.encode_batch(["<|endoftext|><|im_end|>"])[0]) < 151643


def with_two_ids_exchanged(path: Path, folder: Path) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġof"] = vocabulary["Ġof"], vocabulary["Ġthe"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "tokenizer.json"


def test_the_first_difference_is_named_and_the_reference_takes_over(
    path: Path, tmp_path: Path, reference: Reference
) -> None:
    # The engine reads another file than the reference, as if it read the same one differently.
    engine = build("gigatoken", open_reference(with_two_ids_exchanged(path, tmp_path)))
    tokenizer = TextTokenizer(path)
    sample = ["a", "before", "x of x"]

    def compare(name: str, texts: Sequence[str]) -> str | None:
        return first_difference(engine, reference, texts)

    assert tokenizer.prove(sample[:2], compare).startswith("engine: gigatoken")
    reason = tokenizer.prove(sample, compare)
    assert tokenizer.engine == "reference"
    assert reason.startswith(
        "engine: Hugging Face tokenizers; gigatoken differs from Hugging Face tokenizers on the sample"
    )
    assert "text 3, token " in reason
    assert reason.endswith("the text begins 'x of x'")
    with pytest.raises(
        UserError, match=r"--tokenizer-engine gigatoken: gigatoken differs.*use --tokenizer-engine auto or reference"
    ):
        TextTokenizer(path, engine="gigatoken").prove(sample, compare)


def test_texts_that_depend_on_unicode_tables_get_the_references_ids(path: Path, reference: Reference) -> None:
    assert [depends_on_tables(text) for text in [*DOUBTFUL, "abc", "é 中文", ""]] == [True] * 3 + [False] * 3
    batch = ["plain", DOUBTFUL[0], "", DOUBTFUL[1], "中文", DOUBTFUL[2]]
    for texts_ in (batch, DOUBTFUL, batch[:1]):
        for found, expected in zip(build("gigatoken", reference).encode(texts_), reference.encode(texts_), strict=True):
            assert np.array_equal(found, expected)


def test_texts_are_composed_unless_an_added_token_comes_in_between(
    path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build("gigatoken", reference)
    # The mark would turn the end of <think> into another sign.
    taken = ["e\u0301 \u212a \u1e9b\u0323", "q\u0307\u0323 \u0958", "\uac00\u11a8 \u1100\u1161\u11a8"]
    left = ["<think>\u0338", "<think> e\u0301", DOUBTFUL[0], DOUBTFUL[1]]
    expected = [reference.encode([text])[0].tolist() for text in taken + left]
    asked = []
    monkeypatch.setattr(
        reference, "encode", lambda texts: asked.extend(texts) or type(reference).encode(reference, texts)
    )
    found = [engine.encode([text])[0].tolist() for text in taken + left]
    assert found == expected
    assert asked == left


@pytest.mark.parametrize("name", ["reference", *ENGINES])
def test_special_tokens_spelt_out_stay_text(path: Path, name: str) -> None:
    tokenizer = TextTokenizer(path, engine=name)
    ids = tokenizer.encode_batch(["<|endoftext|><think>"])[0]
    assert tokenizer.eod_id not in ids
    # The file calls this one added and not special, so its own library finds it, and so must the engine.
    assert tokenizer.vocabulary["<think>"] in ids
    assert tokenizer.decode(ids) == "<|endoftext|><think>"


def test_gigatoken_reads_tiktoken_files(tmp_path: Path, sample: list[str]) -> None:
    write_tiktoken("cl100k", tmp_path / "cl100k_base.tiktoken")
    assert TextTokenizer(tmp_path).prove(sample).startswith("engine: gigatoken, its ids equal those of tiktoken")


def test_an_engine_that_cannot_take_the_tokenizer_says_so(
    tokenizer_path: Path, sample: list[str], tmp_path: Path
) -> None:
    content = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**content, "normalizer": {"type": "Prepend", "prepend": "▁"}}))
    tokenizer = TextTokenizer(path)
    assert tokenizer.prove(sample).startswith("engine: Hugging Face tokenizers; gigatoken cannot be used: ")
    with pytest.raises(UserError, match=r"--tokenizer-engine gigatoken: .*; use --tokenizer-engine auto or reference"):
        TextTokenizer(path, engine="gigatoken")
    with pytest.raises(UserError, match="--tokenizer-engine fast: is not known; use auto, reference, gigatoken"):
        TextTokenizer(path, engine="fast")
    with pytest.raises(Unsupported):
        build("gigatoken", open_reference(path))


def test_exchanged_ids_are_found(path: Path, tmp_path: Path, reference: Reference) -> None:
    engine = build("gigatoken", open_reference(with_two_ids_exchanged(path, tmp_path)))
    of, the = (reference.vocabulary[token] for token in ("Ġof", "Ġthe"))
    plus = reference.encode([" +"])[0].tolist()
    assert first_difference(engine, reference, ["one", "+ of +"]) == (
        f"the sample, text 2, token 2: {[the, *plus]} where the reference has {[of, *plus]}; the text begins '+ of +'"
    )


def test_added_tokens_are_tried_in_context(path: Path, tmp_path: Path, reference: Reference) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    # Alone both are found; next to a blank only that of the engine takes the blank along.
    content["added_tokens"][-1]["content"] = "<think> "
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    engine = build("gigatoken", open_reference(tmp_path))
    assert "a test string" in str(corner_difference(engine, reference))
    assert corner_difference(engine, open_reference(tmp_path)) is None
