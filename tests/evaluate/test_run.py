from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.measures import Measures
from megatron_kaiyuan.evaluate.run import evaluate
from megatron_kaiyuan.evaluate.summary import summary_line
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING, TaskSizes
from megatron_kaiyuan.export.loading import load_network, load_tokenizer
from tests.helpers.training.local_tasks import write_tasks
from tests.helpers.training.tiny_model import random_documents, write_corpus, write_model, write_text

SIZES = TaskSizes(documents=4, document_characters=150, items=12, context_characters=60, continuation_characters=30)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def log_probability(folder: Path, context: list[int], continuation: list[int]) -> float:
    tokens = torch.tensor([context + continuation])
    with torch.no_grad():
        rows = load_network(folder)(tokens).logits[0].double().log_softmax(-1)
    return sum(rows[len(context) - 1 + index, token].item() for index, token in enumerate(continuation))


def test_lm_eval_runs_offline_and_agrees_with_a_calculation_by_hand(tmp_path: Path) -> None:
    model, baseline = write_model(tmp_path / "model", seed=0), write_model(tmp_path / "untrained", seed=1)
    corpus = write_corpus(tmp_path / "a_text_document", random_documents(4, seed=1))
    text = write_text(tmp_path / "a.jsonl", "a", 14, 60, seed=1)
    output = tmp_path / "run" / "evaluation.json"

    measures = Measures([corpus], [text], seq_length=256, token_limit=100, sizes=SIZES)
    result, path = evaluate(model, measures, output, baseline=baseline, work=tmp_path / "work")
    written = json.loads(output.read_text())
    assert path == output and {"format": "kaiyuan-evaluation", "others": [], **result} == written
    assert result["items"] == {ROLLING: 4, CONTINUATION: 12}

    tokenizer = load_tokenizer(model)
    rolling = [json.loads(line)["text"] for line in lines_of(tmp_path / "work" / f"{ROLLING}.jsonl")]
    nats = -sum(log_probability(model, [0], tokenizer.encode(document)) for document in rolling)
    bits_per_byte = nats / math.log(2) / sum(len(document.encode()) for document in rolling)
    assert result["model"]["tasks"][ROLLING]["bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-4)

    right = 0
    for line in lines_of(tmp_path / "work" / f"{CONTINUATION}.jsonl"):
        item = json.loads(line)
        context = tokenizer.encode(item["context"])
        scores = [log_probability(model, context, tokenizer.encode(choice)) for choice in item["choices"]]
        right += scores.index(max(scores)) == item["gold"]
    assert result["model"]["tasks"][CONTINUATION]["acc"] == pytest.approx(right / 12)

    # The right continuations alone are the same measure as of any other task.
    texts = [json.loads(line) for line in lines_of(tmp_path / "work" / f"{CONTINUATION}.jsonl")]
    answers = [(tokenizer.encode(one["context"]), one["choices"][one["gold"]]) for one in texts]
    nats = -sum(log_probability(model, context, tokenizer.encode(answer)) for context, answer in answers)
    bits_per_byte = nats / math.log(2) / sum(len(answer.strip().encode()) for _, answer in answers)
    assert result["model"]["tasks"][CONTINUATION]["bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-4)

    line = summary_line(result)
    assert line.startswith(f"held-out {result['model']['held_out']['nats_per_token']:.2f} nats/token, unigram entropy ")
    assert f"untrained {result['baseline']['held_out']['nats_per_token']:.2f}; continuation accuracy" in line
    assert "\n" not in line


def test_nothing_is_written_outside_the_work_folder(tmp_path: Path) -> None:
    """In a process of its own: Hugging Face's libraries choose their caches when they are first imported."""
    model = write_model(tmp_path / "model")
    corpus = write_corpus(tmp_path / "a_text_document", random_documents(4, seed=1))
    text = write_text(tmp_path / "a.jsonl", "a", 8, 60, seed=1)
    program = (
        "import sys; from pathlib import Path; from megatron_kaiyuan.evaluate.measures import Measures\n"
        "from megatron_kaiyuan.evaluate.run import evaluate\n"
        "from megatron_kaiyuan.evaluate.summary import summary_line\n"
        "model, corpus, text, work = map(Path, sys.argv[1:])\n"
        "result, path = evaluate(model, Measures([corpus], [text]), work / 'evaluation.json', work=work)\n"
        "print(summary_line(result))"
    )
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "TRANSFORMERS"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, model, corpus, text, tmp_path / "work"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("held-out ") and "untrained" not in done.stdout
    assert "it/s" not in done.stderr, "progress bars belong on a terminal only"
    assert list(home.rglob("*")) == []
    assert (tmp_path / "work" / "evaluation.json").is_file()


def test_wrong_folders_and_lengths_are_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a_text_document", random_documents(2, seed=1))
    text = write_text(tmp_path / "a.jsonl", "a", 3, 60, seed=1)
    output, measures = tmp_path / "evaluation.json", Measures([corpus], [text])
    with pytest.raises(UserError, match="no exported model here"):
        evaluate(tmp_path / "none", measures, output)
    model = write_model(tmp_path / "model")
    with pytest.raises(UserError, match="seq_length 300"):
        evaluate(model, Measures([corpus], [text], seq_length=300), output)
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        evaluate(model, measures, output)
    with pytest.raises(UserError, match="nothing to measure"):
        evaluate(model, Measures(), output)
    with pytest.raises(UserError, match=r"--output: name a JSON file; .* evaluation\.json in the folder of a run"):
        evaluate(model, measures)
    assert not output.exists()


def test_tasks_of_lm_eval_are_run_with_their_own_metrics(tmp_path: Path) -> None:
    model, folder = write_model(tmp_path / "model"), write_tasks(tmp_path / "tasks")
    # Labels and generated text have no bits of an answer, and are run all the same.
    selection = TaskSelection(("options", "letters", "told", "pair"), folder, num_fewshot=1, limit=4)
    result, _ = evaluate(model, Measures(tasks=selection), tmp_path / "evaluation.json")
    found = result["model"]["tasks"]
    assert set(found) == {"options", "letters", "told", "tagged", "tagged_too"}
    assert result["model"]["held_out"] is None
    assert {name for name in found if "bits_per_byte" in found[name]} == {"options", "tagged", "tagged_too"}
    assert set(found["options"]) >= {"acc", "acc_norm"} and "exact_match" in found["told"]

    # What lm-eval refuses by an assertion is one line as well.
    at_length = Measures(tasks=TaskSelection(("told_at_length",), folder, limit=1))
    with pytest.raises(UserError, match=r"tasks told_at_length: lm-eval stopped \(AssertionError: .*max tokens"):
        evaluate(model, at_length, tmp_path / "at_length.json")

    # As lm-eval's own command computes them, from the same folder.
    import lm_eval
    from lm_eval.tasks import TaskManager

    network = lm_eval.models.huggingface.HFLM(pretrained=load_network(model), tokenizer=load_tokenizer(model))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    own = lm_eval.simple_evaluate(
        network, tasks=["options"], task_manager=manager, num_fewshot=1, limit=4, bootstrap_iters=0, log_samples=True
    )
    assert found["options"]["acc"] == own["results"]["options"]["acc,none"]
    bits = size = 0.0
    for sample in own["samples"]["options"]:
        answer = sample["doc"]["options"][sample["doc"]["right"]]
        bits -= sample["filtered_resps"][sample["doc"]["right"]][0] / math.log(2)
        size += len(answer.encode())
    assert found["options"]["bits_per_byte"] == pytest.approx(bits / size, rel=1e-4)
    line = summary_line(result)
    assert f"options bits per byte {bits / size:.2f}; options accuracy" in line and "held-out" not in line


def test_the_output_is_looked_at_before_anything_is_evaluated(tmp_path: Path) -> None:
    """The model has no weights, so that an evaluation that began would fail otherwise."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    corpus = write_corpus(tmp_path / "a_text_document", random_documents(2, seed=1))
    text = write_text(tmp_path / "a.jsonl", "a", 3, 60, seed=1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.json").write_text('{"my": "numbers"}')
    before = sorted(tmp_path.rglob("*"))
    for output, message in (
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "mine.json", "exists and is not a result"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(model, Measures([corpus], [text]), output, force=True)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "mine.json").read_text() == '{"my": "numbers"}'
