"""Texts of a trained run: by the cache, by full passes of megatron-core's network, by transformers on the export."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.generate.complete import complete
from megatron_kaiyuan.generate.model import Generator, open_generator
from megatron_kaiyuan.generate.run import generate
from megatron_kaiyuan.generate.sampling import Sampling
from tests.helpers.processes.rank_server import run, started
from tests.helpers.training.small_run import fit_here, write_recipe
from tests.helpers.training.tiny_model import write_tokenizer

PROMPT = "The sea is"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps on a corpus that says it is of the tokenizer beside it; three of them are averaged."""
    folder = tmp_path_factory.mktemp("generating")
    write_tokenizer(folder / "tokenizer")
    recipe = write_recipe(folder, 2, fingerprint=checksum(folder / "tokenizer" / "tokenizer.json"))
    fit_here(recipe, "model.vocab_size=257", "train.train_tokens=3072")
    return folder


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


@pytest.fixture(scope="module")
def exported(trained: Path, alone: None) -> Path:
    from megatron_kaiyuan.export.run import export_checkpoint

    export_checkpoint(trained / "run", trained / "exported", trained / "tokenizer")
    return trained / "exported"


@pytest.fixture(scope="module")
def generator(trained: Path, alone: None) -> Generator:
    return open_generator(trained / "run", None, trained / "tokenizer")


def test_the_cache_gives_what_full_passes_of_the_trained_network_give(trained: Path, generator: Generator) -> None:
    from megatron_kaiyuan.checkpoint.load import load_common, model_of
    from megatron_kaiyuan.checkpoint.network import load_network

    assert generator.name == f"{trained / 'run'}, step 6"
    folder = trained / "run" / "checkpoints" / "step_6"
    network = load_network(folder, model_of(folder, load_common(folder)["run"]))
    for prompt in (PROMPT, "a", "中文 and\nmore of it " * 3):
        ids = generator.tokenizer.encode(prompt)
        expected: list[int] = []
        while len(expected) < 24 and 0 not in expected:
            whole = torch.tensor([ids + expected])
            with torch.inference_mode():
                logits_v = network(whole, torch.arange(whole.shape[1])[None], None)[0, -1]
            expected.append(int(logits_v.argmax()))
        (found,) = complete(generator, prompt, Sampling(max_new_tokens=24))
        assert found.ids == expected
        assert found.finish == ("stop" if expected[-1] == 0 else "length")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.5},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "num_return_sequences": 3},
        {"do_sample": True, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.1},
    ],
    ids=["greedy", "penalty", "drawn", "top-k", "top-p"],
)
def test_texts_are_those_of_transformers_on_the_export(
    exported: Path, generator: Generator, options: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    ids_bs = tokenizer(PROMPT, return_tensors="pt").input_ids
    torch.manual_seed(5)
    expected_bs = network.generate(ids_bs, max_new_tokens=12, pad_token_id=0, **options)[:, ids_bs.shape[1] :]
    expected = [row[: row.index(0) + 1] if 0 in row else row for row in expected_bs.tolist()]

    sampling = Sampling(max_new_tokens=12, **options)
    for one in (generator, open_generator(exported, None, None)):
        torch.manual_seed(5)
        assert [found.ids for found in complete(one, PROMPT, sampling)] == expected
        (document,) = generate(one, [PROMPT], sampling, 5, as_json=True)
        result = json.loads(document)
        assert [found["ids"] for found in result["results"][0]["completions"]] == expected
        assert result["model"] == one.name and result["seed"] == 5
        printed = list(generate(one, ["first", PROMPT], sampling, 5, as_json=False))
        assert printed[len(expected) :] == [
            PROMPT + tokenizer.decode(row, skip_special_tokens=True) for row in expected
        ]


def test_a_text_ends_at_the_end_of_text_token_or_of_the_context(generator: Generator, trained: Path) -> None:
    sampling = Sampling(max_new_tokens=600, do_sample=True, num_return_sequences=8)
    torch.manual_seed(0)
    ended = [one for one in complete(generator, PROMPT, sampling) if one.finish == "stop"]
    assert ended, "no text of 8 ended in 600 tokens; take another seed"
    for one in ended:
        assert one.ids.index(0) == len(one.ids) - 1 and "endoftext" not in one.text
    room = 5
    (cut,) = complete(generator, "x" * (generator.context - room), Sampling(max_new_tokens=600))
    assert len(cut.ids) <= room and (len(cut.ids) == room or cut.finish == "stop")
    with pytest.raises(UserError, match=rf"prompt: has {generator.context:,} tokens, and .* step 6 reads .*; shorten"):
        complete(generator, "x" * generator.context, Sampling())


def test_an_average_and_a_step_are_named(trained: Path, alone: None) -> None:
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints

    average_checkpoints(trained / "run", Selection(3, None, ()), trained / "averaged", False)
    averaged = open_generator(trained / "averaged", None, trained / "tokenizer")
    assert averaged.name.endswith("mean of steps 2, 4, 6")
    second = open_generator(trained / "run", 2, trained / "tokenizer")
    assert second.name == f"{trained / 'run'}, step 2"
    texts = {tuple(complete(one, PROMPT, Sampling(max_new_tokens=20))[0].ids) for one in (averaged, second)}
    assert len(texts) == 2


def test_wrong_models_and_tokenizers_are_named(trained: Path, exported: Path, tmp_path: Path) -> None:
    run_dir, tokenizer = trained / "run", trained / "tokenizer"
    foreign = tmp_path / "foreign"
    write_tokenizer(foreign)
    (foreign / "tokenizer.json").write_text((foreign / "tokenizer.json").read_text() + "\n")
    for path, step, folder, message in (
        (run_dir, None, None, "--tokenizer: .*, step 6 has none of its own; name the folder"),
        (run_dir, None, tmp_path, r"tokenizer\.json: tokenizer not found"),
        (run_dir, None, foreign, "is not the tokenizer that made the corpora of"),
        (run_dir, 3, tokenizer, "holds no finished checkpoint of step 3, but of 0, 2, 4, 6"),
        (tmp_path / "none", None, tokenizer, "none: not found"),
        (exported, 2, None, "is an exported model, of which --step 2 chooses none"),
    ):
        with pytest.raises(UserError, match=message):
            open_generator(path, step, folder)
    with pytest.raises(UserError, match="is an exported model, which has no --weights ema"):
        open_generator(exported, None, None, weights="ema")
    with pytest.raises(UserError, match=r"step_6: .*EMA"):
        open_generator(run_dir, None, tokenizer, weights="ema")


def kaiyuan(*arguments: object, typed: str = "") -> subprocess.CompletedProcess[str]:
    return run(1, ["-m", "megatron_kaiyuan.cli", "generate", *arguments], imported="evaluation", typed=typed)


def test_only_texts_are_on_standard_output(trained: Path, generator: Generator, tmp_path: Path) -> None:
    model = [trained / "run", "--tokenizer", trained / "tokenizer", "--device", "cpu", "--max-new-tokens", 4]
    expected = list(generate(generator, ["one", "two"], Sampling(max_new_tokens=4), 0, as_json=False))
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "one"}\n{"prompt": "two", "more": 1}\n')
    for done in (kaiyuan(*model, "--prompt-file", rows), kaiyuan(*model, typed="one\n\ntwo\n")):
        assert done.returncode == 0, done.stderr
        assert done.stdout == "".join(f"{text}\n" for text in expected)
        assert done.stderr.splitlines() == [f"generate: {trained / 'run'}, step 6, float32 on cpu"]
    done = kaiyuan(*model, "--dtype", "bfloat16", "--json", "one")
    assert len(json.loads(done.stdout)["results"][0]["completions"][0]["ids"]) == 4 and "bfloat16" in done.stderr


def test_mistakes_are_one_line(trained: Path) -> None:
    for more, message in (
        (["x" * 5000, "--tokenizer", trained / "tokenizer"], "prompt: has 5,000 tokens, and "),
        (["one", "--temperature", 0.5], "--temperature: is for drawn tokens; add --do-sample"),
    ):
        done = kaiyuan(trained / "run", "--device", "cpu", *more)
        assert done.returncode == 2 and done.stdout == "", more
        assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_ctrl_c_ends_it_without_a_trace(trained: Path) -> None:
    endless = ["--max-new-tokens", 100, "--do-sample", "--num-return-sequences", 20000]
    command = ["generate", trained / "run", "one", "--tokenizer", trained / "tokenizer", "--device", "cpu", *endless]
    with started(1, ["-m", "megatron_kaiyuan.cli", *command], imported="evaluation") as job:
        deadline = time.monotonic() + 120
        while "float32 on cpu" not in job.errors():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 130
        assert "Traceback" not in job.errors()


def test_on_a_terminal_text_appears_as_it_is_written(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = generate(generator, [PROMPT], Sampling(max_new_tokens=20), 0, as_json=False)
    with capsys.disabled():
        shown: list[str] = []
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stdout, "write", lambda part: shown.append(part) or len(part))
        rest = list(generate(generator, [PROMPT], Sampling(max_new_tokens=20), 0, as_json=False))
        monkeypatch.undo()
    assert rest == [] and len([part for part in shown if part.strip()]) > 1
    assert "".join(shown).rstrip("\n") == text.rstrip("\n")
