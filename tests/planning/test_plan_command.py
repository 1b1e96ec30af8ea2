"""`kaiyuan plan`: what it prints, and a line for each mistake."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_recipe import KAIYUAN_2B

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.plan import USABLE, Plan, make_plan
from megatron_kaiyuan.planning.show import as_text
from megatron_kaiyuan.platform.figures import device_named
from tests.data.small_corpora import write_corpus

TOKENS = "train.train_tokens=2_200_000_000_000"


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_kaiyuan.cli", "plan", KAIYUAN_2B, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def planned(gpus: int, gpu: str, *overrides: str, mfu: float | None = None, **figures: float) -> Plan:
    return make_plan(Path(KAIYUAN_2B), overrides, gpus, device_named(gpu, **figures), mfu)


def test_the_best_comes_first_and_what_does_not_fit_last() -> None:
    done = plan("--gpus", "64", "--gpu", "h100", TOKENS, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
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
        groups = {"tensor": "tensor_model_parallel_size", "pipeline": "pipeline_model_parallel_size"}
        for kind, size in {**groups, "data": "data_parallel_size"}.items():
            assert (layout["sent_bytes"][kind] > 0) == (layout[size] > 1)
    seconds = [layout["step_seconds"] for layout in layouts if layout["fits"]]
    assert all(later > 0.99 * sooner for sooner, later in itertools.pairwise(seconds))
    assert layouts[0]["days"] == pytest.approx(262_260 * seconds[0] / 86_400)


def test_the_table_names_assumptions_and_what_is_too_large() -> None:
    text = as_text(planned(8, "910a"), every_micro_batch=False)
    assert "28% of the peak" in text and "Puro-2B" in text and "Hot Chips" in text and "HCCL's of 2 x 200 MB" in text
    found = planned(8, "910a", memory_gib=14)
    text = as_text(found, every_micro_batch=False)
    rows = [line for line in text.splitlines() if " TP 1 PP" in line]
    assert len(rows) == 3 and all("GiB,  of which activations" in row for row in rows)
    assert text.splitlines()[-1].startswith("plan: ")
    assert len(as_text(found, every_micro_batch=True).splitlines()) > len(text.splitlines())


def test_the_table_tells_what_is_sent() -> None:
    """Of the layout TP 2, PP 2, DP 256: a quarter of the gradients, 4 bytes each, and of the weights, 2 bytes each."""
    lines = [line.split() for line in as_text(planned(1024, "h100"), every_micro_batch=False).splitlines()]
    (head,) = (words for words in lines if words[:2] == ["TP", "SP"])
    # A row without sequence parallelism has no word for it.
    (row,) = (words for words in lines if words[:3] == ["2", "2", "256"])
    sent = dict(zip(head[2:], row[1:], strict=True))
    assert float(sent["data"]) == pytest.approx(2_031_854_592 / 4 * 6 * 255 / 256 / 2**30, abs=0.01)
    assert (sent["tensor"], sent["pipe"]) == ("7.13", "0.12")


def test_what_is_not_counted_is_said() -> None:
    slower = ["model.qk_layernorm=false", "optimizer.qk_clip_tau=100", "model.fp32_head=true"]
    text = as_text(planned(8, "h100", *slower), every_micro_batch=False)
    assert "not counted: the time that optimizer.qk_clip_tau takes" in text
    assert "not counted: that model.fp32_head multiplies" in text
    assert "not counted" not in as_text(planned(8, "h100"), every_micro_batch=False)


def test_nothing_fits() -> None:
    text = as_text(planned(1, "h100", memory_gib=16), every_micro_batch=False)
    assert "no layout fits" in text and text.splitlines()[-1].startswith("plan: none of ")


def test_one_process_and_ten_thousand() -> None:
    assert planned(1, "h200").layouts
    found = planned(14336, "h100", "train.global_batch_size=14336")
    assert {layout.run.parallel.pipeline_model_parallel_size for layout in found.layouts} >= {1, 7, 28}


def test_tokens_are_those_of_the_phases_where_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASES", str(tmp_path))
    assert planned(64, "h100").steps is None
    write_corpus(tmp_path / "text", [[1] * 50] * 200)
    for index in range(1, 6):
        recipe = PhaseRecipe.model_validate(
            {"name": f"phase_{index}", "order": "shuffle", "datasets": [{"corpus": "text"}]}
        )
        build_phase(recipe, {"text": tmp_path / "text"}, tmp_path / recipe.name, 1)
    # 50,000 tokens.
    assert planned(64, "h100", "train.seq_length=16", "train.global_batch_size=64").steps == 48


def test_figures_by_hand_and_no_figures() -> None:
    text = as_text(planned(64, "rtx4090", mfu=0.4, memory_gib=24, peak_tflops=165), every_micro_batch=False)
    assert "64 x rtx4090: 24.0 GiB, 165 TFLOP/s" in text and "40% of the peak (given by hand)" in text
    text = as_text(planned(2, "cpu", "train.seq_length=256", "train.precision=fp32"), every_micro_batch=False)
    assert "no times: give --peak-tflops" in text


def test_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['kaiyuan', 'plan', sys.argv[1], '--gpus', '64', '--gpu', 'h100'];"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr));"
        "from megatron_kaiyuan.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, KAIYUAN_2B], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and done.stderr == "False\n"


def test_a_mistake_is_one_line() -> None:
    done = plan("--gpus", "8", "--gpu", "h1000")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: --gpu 'h1000' is unknown; did you mean 'h100'?")
    assert len(done.stderr.splitlines()) == 1


def test_mistakes_name_what_to_change() -> None:
    with pytest.raises(UserError, match="--gpu-memory-gib"):
        planned(8, "mi300", peak_tflops=1307)
    with pytest.raises(UserError, match=r"train.precision: bf16 does not run on --gpu 910a; use fp32 or fp16"):
        planned(8, "910a", "train.precision=bf16")
    with pytest.raises(UserError, match=r"^backend\.attention: torch does not run on --gpu 910a; use auto$"):
        planned(8, "910a", "backend.attention=torch")
    with pytest.raises(UserError, match=r"unknown field; here it is train\.seq_length"):
        planned(8, "h100", "train.seq_len=1")
