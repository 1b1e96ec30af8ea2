"""`kaiyuan eval` on the folder of a run: what its export gives, where `kaiyuan report` reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_kaiyuan import platform
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.measures import Measures
from megatron_kaiyuan.evaluate.run import evaluate
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from megatron_kaiyuan.files import checksum
from tests.helpers.processes.rank_server import run
from tests.helpers.training.local_tasks import write_tasks
from tests.helpers.training.small_run import succeed, write_corpus, write_recipe
from tests.helpers.training.tiny_model import write_text, write_tokenizer


def kaiyuan(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(1, ["-m", "megatron_kaiyuan.cli", *arguments], imported="evaluation")


def last_line(*arguments: object) -> str:
    done = kaiyuan(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, on corpora that say they are of the tokenizer beside them."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_tokenizer(folder / "tokenizer")
    fingerprint = checksum(folder / "tokenizer" / "tokenizer.json")
    recipe = write_recipe(folder, fingerprint=fingerprint)
    succeed(1, recipe, "model.vocab_size=257", "train.train_tokens=1024")
    write_corpus(folder / "held_out" / "code", documents=6, seed=1, fingerprint=fingerprint)
    write_tasks(folder / "tasks")
    write_text(folder / "text.jsonl", "text", 6, 30, seed=1)
    return folder


def test_a_run_is_measured_as_its_export_is(inputs: Path, tmp_path: Path) -> None:
    run_dir, tokenizer = tmp_path / "run", inputs / "tokenizer"
    shutil.copytree(inputs / "run", run_dir)
    corpus = inputs / "held_out" / "code"
    what = [
        "--held-out",
        f"{corpus}.idx",
        "--tasks",
        "options",
        "last_word",
        "told",
        "--include-path",
        inputs / "tasks",
    ]
    what += ["--num-fewshot", 1, "--limit", 5, "--device", "cpu", "--held-out-text", inputs / "text.jsonl"]
    untrained = run_dir / "checkpoints" / "step_0"
    done = kaiyuan("eval", run_dir, *what, "--tokenizer", tokenizer, "--baseline", untrained)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"eval: {run_dir}, step 2: held-out ") and "options bits per byte" in done.stdout
    assert f"evaluate: {run_dir}, step 2, on cpu" in done.stderr and f"{run_dir}, step 0, on cpu" in done.stderr
    result = json.loads((run_dir / "evaluation.json").read_text())

    # Through other code: our weights renamed, transformers' network.
    line = last_line("export", run_dir, "--output", tmp_path / "model", "--tokenizer", tokenizer)
    assert line.startswith(f"export: {run_dir}, step 2: ")
    last_line("eval", tmp_path / "model", *what, "--seq-length", 64, "--output", tmp_path / "exported.json")
    exported = json.loads((tmp_path / "exported.json").read_text())
    mine, other = result["model"], exported["model"]
    assert mine["held_out"]["nats_per_token"] == pytest.approx(other["held_out"]["nats_per_token"], rel=1e-5)
    assert mine["tasks"].keys() == other["tasks"].keys() >= {"options", "last_word", "heldout_rolling"}
    for task in mine["tasks"]:
        assert mine["tasks"][task] == pytest.approx(other["tasks"][task], rel=1e-4)
    assert mine["tasks"]["options"] != result["baseline"]["tasks"]["options"]

    last_line("report", run_dir)
    page = (run_dir / "report.html").read_text()
    assert "evaluation.json is not there" not in page and "last_word" in page


def test_mistakes_are_named(inputs: Path, tmp_path: Path) -> None:
    run_dir, corpus = inputs / "run", inputs / "held_out" / "code"
    write_corpus(tmp_path / "foreign", documents=3, fingerprint="xxh3:1")
    other = tmp_path / "tokenizer"
    write_tokenizer(other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    options = Measures(tasks=TaskSelection(("options",), inputs / "tasks"))
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        for path, measures, tokenizer, message in (
            (run_dir, Measures(), None, "nothing to measure"),
            (run_dir, options, None, "--tokenizer: .*run, step 2 has none of its own"),
            (run_dir, options, other, "is not the tokenizer that made the corpora"),
            (run_dir, Measures([tmp_path / "foreign"]), None, "made by another tokenizer than the corpora of"),
            (run_dir, Measures([corpus], seq_length=10**6), None, "seq_length 1000000: .* tokens at most"),
            (tmp_path / "gone", Measures([corpus]), None, "gone: not found; .* no exported model here"),
        ):
            with pytest.raises(UserError, match=message):
                evaluate(path, measures, tokenizer=tokenizer)
    assert not (run_dir / "evaluation.json").exists()


def test_an_unknown_device_is_one_line(inputs: Path) -> None:
    done = kaiyuan("eval", inputs / "run", "--held-out", inputs / "held_out" / "code", "--device", "gpu")
    assert done.returncode == 2 and "error: platform 'gpu' is unknown" in done.stderr
    assert "Traceback" not in done.stderr
