"""From the checkpoints of a real run on: average, export, report, by the commands themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from megatron_kaiyuan import platform
from megatron_kaiyuan.train.run_folder import require_run_folder
from tests.helpers.processes.rank_server import run
from tests.helpers.training.small_run import start_from


def kaiyuan(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in a fork, see `tests/helpers/processes/rank_server.py`."""
    return run(1, ["-m", "megatron_kaiyuan.cli", *arguments])


def last_line(*arguments: object) -> str:
    done = kaiyuan(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_average_export_and_report(finished_run: Path, tmp_path: Path) -> None:
    averaged = tmp_path / "averaged"
    assert "steps 10, 20" in last_line("average", finished_run, "--last", 2, "--output", averaged)
    # As a user starts it: what it imports by itself is enough.
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "megatron_kaiyuan.cli",
        "export",
        averaged,
        "--output",
        tmp_path / "model",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert float(re.search(r"difference to megatron-core ([\d.e+-]+)", line).group(1)) < 1e-4

    platform.activate("cpu")
    from transformers import AutoModelForCausalLM

    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.export.run import export_checkpoint

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    # The mean differs from its last term, which is exported here: transformers is imported by now.
    with single_process(platform.activate("cpu")):
        export_checkpoint(finished_run / "checkpoints" / "step_20", tmp_path / "last", None)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "last")
    ids = torch.arange(16)[None]
    assert not torch.allclose(model(ids).logits, other(ids).logits)

    last_line("report", finished_run, "--output", tmp_path / "report.html")
    assert "<html" in (tmp_path / "report.html").read_text()


def test_resolved_configuration_starts_the_same_run(finished_run: Path) -> None:
    resolved = finished_run / "config.yaml"
    assert yaml.safe_load(resolved.read_text())["model"]["hidden_size"] == 64
    assert "20 steps" in last_line("train", resolved, "--check", "--world-size", 2)


def test_mistakes_are_one_line(finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    victim = next((run_dir / "checkpoints" / "step_10").glob("*.distcp"))
    victim.write_bytes(victim.read_bytes()[:-1])
    for arguments, named in (
        (("average", tmp_path / "absent"), "absent"),
        (("average", finished_run, "--last", 9), "9 trained checkpoints asked for"),
        (("export", run_dir / "checkpoints" / "step_10", "--output", tmp_path / "out"), "damaged"),
        (("export", tmp_path / "absent", "--output", tmp_path / "out"), "absent: not found; name a run's folder"),
        (("report", tmp_path / "absent"), "metrics.jsonl"),
    ):
        done = kaiyuan(*arguments)
        assert done.returncode == 2, done.stdout
        assert named in done.stderr and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_folder_is_known_again_and_a_recipe_in_it_is_not_written_over(finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    require_run_folder(run_dir)
    recipe = run_dir.with_name("mine") / "config.yaml"
    recipe.parent.mkdir()
    recipe.write_text("# my comments\n" + (finished_run / "config.yaml").read_text().partition("\n")[2])
    refused = kaiyuan("train", recipe, "--check", "--world-size", 2, f"run_dir={recipe.parent}")
    assert refused.returncode == 2 and "config.yaml: is not part of a run" in refused.stderr
    assert recipe.read_text().startswith("# my comments")
