"""`kaiyuan plan`: what it prints, and a line for each mistake."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
from small_recipe import KAIYUAN_2B

from megatron_kaiyuan.planning.plan import USABLE

TOKENS = "train.train_tokens=2_200_000_000_000"


def plan(*arguments: str, recipe: str = KAIYUAN_2B) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_kaiyuan.cli", "plan", recipe, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def succeeds(*arguments: str) -> str:
    done = plan(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_best_comes_first_and_what_does_not_fit_last() -> None:
    found = json.loads(succeeds("--gpus", "64", "--gpu", "h100", TOKENS, "--json"))
    layouts, usable = found["layouts"], found["device"]["usable_bytes"]
    assert usable == pytest.approx(79.1 * USABLE * 2**30)
    assert found["steps"] == 262_260 and found["parameters"] == 2_031_854_592
    fits = [layout["fits"] for layout in layouts]
    assert fits == sorted(fits, reverse=True) and 10 < sum(fits) < len(fits)
    for layout in layouts:
        parts = {name: size for name, size in layout["bytes"].items() if name not in ("total", "host")}
        assert layout["bytes"]["total"] == sum(parts.values())
        assert layout["fits"] == (layout["bytes"]["total"] <= usable)
        assert layout["largest_part"] == max(parts, key=lambda name: parts[name])
    seconds = [layout["step_seconds"] for layout in layouts if layout["fits"]]
    assert all(later > 0.99 * sooner for sooner, later in itertools.pairwise(seconds))
    assert layouts[0]["days"] == pytest.approx(262_260 * seconds[0] / 86_400)


def test_the_table_names_assumptions_and_what_is_too_large() -> None:
    text = succeeds("--gpus", "8", "--gpu", "910a")
    assert "28% of the peak" in text and "Puro-2B" in text and "Hot Chips" in text
    rows = [line for line in text.splitlines() if " TP 1 PP" in line]
    assert len(rows) == 3 and all("GiB,  of which activations" in row for row in rows)
    assert text.splitlines()[-1].startswith("plan: ")
    every = succeeds("--gpus", "8", "--gpu", "910a", "--all")
    assert len(every.splitlines()) > len(text.splitlines())


def test_nothing_fits() -> None:
    text = succeeds("--gpus", "1", "--gpu", "h100", "--gpu-memory-gib", "16")
    assert "no layout fits" in text and text.splitlines()[-1].startswith("plan: none of ")


def test_one_process_and_ten_thousand() -> None:
    assert json.loads(succeeds("--gpus", "1", "--gpu", "h200", "--json"))["layouts"]
    found = json.loads(succeeds("--gpus", "14336", "--gpu", "h100", "--json", "train.global_batch_size=14336"))
    assert {layout["pipeline_model_parallel_size"] for layout in found["layouts"]} >= {1, 7, 28}


def test_figures_by_hand_and_no_figures() -> None:
    by_hand = ["--gpu-memory-gib", "24", "--peak-tflops", "165", "--mfu", "0.4"]
    text = succeeds("--gpus", "64", "--gpu", "rtx4090", *by_hand)
    assert "64 x rtx4090: 24.0 GiB, 165 TFLOP/s" in text and "40% of the peak (given by hand)" in text
    text = succeeds("--gpus", "2", "--gpu", "cpu", "train.seq_length=256", "train.precision=fp32")
    assert "no times: give --peak-tflops" in text


def test_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['kaiyuan', 'plan', sys.argv[1], '--gpus', '64', '--gpu', 'h100'];"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr));"
        "from megatron_kaiyuan.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, KAIYUAN_2B], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "False\n"


MISTAKES = {
    "name": (["--gpus", "8", "--gpu", "h1000"], "did you mean 'h100'?"),
    "figures": (["--gpus", "8", "--gpu", "mi300", "--peak-tflops", "1307"], "--gpu-memory-gib"),
    "batch": (["--gpus", "96", "--gpu", "h100"], "--gpus 96: no legal layout"),
    "recipe": (["--gpus", "8", "--gpu", "h100", "train.seq_len=1"], "did you mean 'seq_length'?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake: str) -> None:
    arguments, named = MISTAKES[mistake]
    done = plan(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert named in done.stderr and done.stderr.count("error: ") == 1 and len(done.stderr.splitlines()) == 1
