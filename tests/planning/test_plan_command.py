"""`kaiyuan plan`: what it prints, and a line for each mistake."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.cli import app
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.failures import Assumed, losses
from megatron_kaiyuan.planning.plan import USABLE, Plan, make_plan, require_steps
from megatron_kaiyuan.planning.records import Costs, as_record
from megatron_kaiyuan.planning.show import as_text
from megatron_kaiyuan.platform.datasheets import device_named
from megatron_kaiyuan.usage import UsageError
from tests.helpers.files.small_corpora import write_corpus
from tests.helpers.training.small_recipe import KAIYUAN_2B

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
    text = as_text(planned(8, "910a"), every_layout=False)
    assert "56% of the peak (no published run on it" in text and "Hot Chips" in text and "HCCL's of 2 x 200 MB" in text
    found = planned(8, "910a", memory_gib=14)
    text = as_text(found, every_layout=False)
    assert "*     TP 1 PP 1 DP 8  micro 1:  26.1 GiB,  of which activations 9.01" in text
    assert text.splitlines()[-1].startswith("plan: ")
    assert len(as_text(found, every_layout=True).splitlines()) > len(text.splitlines())


def test_the_table_tells_what_is_sent() -> None:
    """Of the layout TP 2, PP 2, DP 256: a quarter of the gradients, 4 bytes each, and of the weights, 2 bytes each."""
    text = as_text(planned(1024, "h100"), every_layout=False)
    # Without the spans of times.
    lines = [[word for word in line.split() if word[0] != "("] for line in text.splitlines()]
    (head,) = (words for words in lines if words[:2] == ["TP", "SP"])
    # A row without sequence parallelism has no word for it.
    (row,) = (words for words in lines if words[:3] == ["2", "2", "256"])
    sent = dict(zip(head[2:], row[1:], strict=True))
    assert float(sent["data"]) == pytest.approx(2_031_854_592 / 4 * 6 * 255 / 256 / 2**30, abs=0.01)
    assert (sent["tensor"], sent["pipe"]) == ("7.13", "0.12")


def test_what_is_not_counted_is_said() -> None:
    slower = ["model.qk_layernorm=false", "optimizer.qk_clip_tau=100", "model.fp32_head=true"]
    text = as_text(planned(8, "h100", *slower), every_layout=False)
    assert "not counted: the time that optimizer.qk_clip_tau takes" in text
    assert "not counted: that model.fp32_head multiplies" in text
    assert "not counted" not in as_text(planned(8, "h100"), every_layout=False)


def test_a_screen_holds_the_plan() -> None:
    """The recipe's own layout is there wherever it stands; the rest is in --all."""
    own = "parallel.tensor_model_parallel_size=8", "parallel.pipeline_model_parallel_size=4"
    for found in (planned(256, "h100", TOKENS, *own), planned(64, "910a"), planned(8, "h100"), planned(1, "cpu")):
        lines = as_text(found, every_layout=False).splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 185
        assert sum(line.startswith("*  ") for line in lines) == 1
    lines = as_text(planned(256, "h100", TOKENS, *own), every_layout=False).splitlines()
    assert any("slower layouts fit: --all shows them" in line for line in lines)


def test_each_time_has_its_span() -> None:
    """Of published runs on that kind of device; by hand none is known."""
    found = planned(64, "h100", TOKENS)
    text = as_text(found, every_layout=False)
    assert "steps took 0.8 to 1.25 of the planned time there" in text
    (row,) = (line for line in text.splitlines() if line.startswith("*  "))
    days = found.layouts[0].speed is not None and found.days(found.layouts[0].speed)
    assert row.endswith(f"({0.8 * days:.1f}-{1.25 * days:.1f})") and row.count("(") == 2
    by_hand = as_text(planned(64, "h100", TOKENS, mfu=0.4), every_layout=False)
    assert "(given by hand); times are as right as that is" in by_hand
    assert not any("(" in line for line in by_hand.splitlines() if line.startswith("*  "))


def test_hours_money_and_failures() -> None:
    found = planned(64, "h100", TOKENS, "checkpoint.asynchronous=false")
    lost = losses(found, found.layouts[0], Assumed(mtbf_hours=1000, restart_minutes=30))
    assert lost is not None and found.layouts[0].speed is not None
    costs = Costs(price=2.0, assumed=Assumed(mtbf_hours=1000, restart_minutes=30))
    lines = as_text(found, every_layout=False, costs=costs).splitlines()
    (hours,) = (line for line in lines if line.startswith("the best takes"))
    all_hours = found.layouts[0].speed.step_seconds * 262_260 * 64 / 3600 * (1 + lost.lost)
    assert f"the best takes {all_hours:,.0f} device-hours (" in hours
    assert f", {2 * all_hours:,.0f} (" in hours and "at 2 for a device and hour" in hours
    # Days with the losses, beside the column without them, and one percentage for one fact.
    assert f") in {all_hours / 64 / 24:.1f} days (" in hours and " of them" not in hours
    assert hours.endswith(f"with the {lost.lost:.1%} that failures and saves add")
    assert any(line.endswith("; days: without failures and saves:") for line in lines)
    (failures,) = (line for line in lines if line.startswith("failures:"))
    assert "one in 16 hours" in failures and "1,000 h a device, given by hand" in failures and "30 minutes" in failures
    (saves,) = (line for line in lines if line.startswith("saves:"))
    assert f"failures and saves add {lost.lost:.1%}; least with" in saves
    assert "every 400 steps" in saves and f"checkpoint.save_every_steps={lost.best_steps} " in saves
    row = as_record(found, costs)["layouts"][0]
    assert row["failures"]["best_save_every_steps"] == lost.best_steps
    assert row["cost"] == 2 * row["device_hours"] and row["failures"]["lost_part"] == lost.lost
    # A run that would never end is written as null: JSON has no infinity.
    endless = as_record(found, Costs(assumed=Assumed(mtbf_hours=0.001)))
    assert endless["layouts"][0]["failures"]["lost_part"] is None
    assert "add more than 10 times" in as_text(found, False, Costs(assumed=Assumed(mtbf_hours=0.001)))


def test_a_short_run_is_given_in_hours_or_less() -> None:
    """20 steps: a minute and a half, and some device-hours; no span is rounded to nothing."""
    found = planned(64, "h100", f"train.train_tokens={20 * 2048 * 4096}")
    assert found.layouts[0].speed is not None
    seconds = 20 * found.layouts[0].speed.step_seconds
    text = as_text(found, every_layout=False, costs=Costs(price=0.01))
    lines = text.splitlines()
    (row,) = (line for line in lines if line.startswith("*  "))
    assert any(line.endswith("; minutes: without failures and saves:") for line in lines)
    assert row.endswith(f"{seconds / 60:.2f} ({0.8 * seconds / 60:.2f}-{1.25 * seconds / 60:.2f})")
    (hours,) = (line for line in lines if line.startswith("the best takes"))
    assert hours.startswith(f"the best takes {seconds * 64 / 3600:.2f} device-hours ({0.8 * seconds * 64 / 3600:.2f}-")
    assert "fewer than 0.01 in all" in text and "e-0" not in text and "0.0-" not in text


def test_nothing_to_train_is_refused() -> None:
    for tokens in (0, 2048 * 4096 - 1):
        words = ["plan", KAIYUAN_2B, "--gpus", "64", "--gpu", "h100", f"train.train_tokens={tokens}"]
        with pytest.raises(UserError) as refused:
            app(words, standalone_mode=False)
        assert str(refused.value).startswith(
            f"train.train_tokens: nothing to train: {tokens:,} tokens are less than a step of 8,388,608; take more"
        )
    found = planned(64, "h100", f"train.train_tokens={2048 * 4096}")
    require_steps(found)
    assert found.steps == 1


def test_a_slow_step_has_no_exponent() -> None:
    """A step of 83 s may take more than 100."""
    found = planned(8, "h100", TOKENS, "train.global_batch_size=4608")
    assert found.layouts[0].speed is not None
    step = found.layouts[0].speed.step_seconds
    assert 80 < step < 100 < 1.25 * step
    text = as_text(found, every_layout=False)
    assert f" {step:.1f} ({0.8 * step:.0f}-{1.25 * step:.0f}) " in text and "e+02" not in text


def test_nothing_fits() -> None:
    text = as_text(planned(1, "h100", memory_gib=16), every_layout=False)
    assert "no layout fits" in text and text.splitlines()[-1].startswith("plan: none of ")


def test_one_process_and_ten_thousand() -> None:
    assert planned(1, "h200").layouts
    found = planned(14336, "h100", "train.global_batch_size=14336")
    assert {layout.run.parallel.pipeline_model_parallel_size for layout in found.layouts} >= {1, 7, 28}


def test_more_devices_than_the_batch_has_samples() -> None:
    """A line within seconds, with the next number that works; the command itself takes a million at most."""
    started = time.monotonic()
    # 2048 samples, each on 8 tensor-parallel ranks of 28 pipeline stages.
    with pytest.raises(UserError, match=r"^--gpus 999999: no legal layout; .*; use 458752 GPUs, or "):
        planned(999_999, "h100")
    assert time.monotonic() - started < 10
    with pytest.raises(UsageError) as refused:
        app(["plan", KAIYUAN_2B, "--gpus", "100000000", "--gpu", "h100"], standalone_mode=False)
    assert refused.value.format_message().startswith("Invalid value for '--gpus'")


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
    with pytest.raises(UserError, match=r"^data\.phases: nothing to train: 50,000 tokens"):
        require_steps(planned(64, "h100"))


def test_figures_by_hand_and_no_figures() -> None:
    text = as_text(planned(64, "rtx4090", mfu=0.4, memory_gib=24, peak_tflops=165), every_layout=False)
    assert "64 x rtx4090: 24.0 GiB, 165 TFLOP/s" in text and "40% of the peak (given by hand)" in text
    # No run on it is known, nor its memory's speed.
    text = as_text(planned(64, "rtx4090", memory_gib=24, peak_tflops=165), every_layout=False)
    assert "56% of the peak (no published run on it" in text and "OPT-175B" in text
    text = as_text(planned(2, "cpu", "train.seq_length=256", "train.precision=fp32"), every_layout=False)
    assert "no times: give --peak-tflops" in text


def test_a_measured_speed_gives_the_utilization_back() -> None:
    """The plan's own TFLOP/s of the recipe's layout, taken for measured."""
    layout = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]
    found = planned(64, "h100", *layout, mfu=0.37)
    (own,) = (one for one in found.layouts if one.is_recipe(found.run))
    assert own.speed is not None
    measured = own.speed.tflops_per_gpu / 989.4
    again = make_plan(Path(KAIYUAN_2B), layout, 64, device_named("h100"), None, measured)
    assert measured < 0.3 and again.mfu == pytest.approx(0.37, rel=0.001) and again.spread is None
    with pytest.raises(UserError, match=r"^--measured-mfu 0\.9: more than the recipe's layout can reach on 64 x h100"):
        make_plan(Path(KAIYUAN_2B), layout, 64, device_named("h100"), None, 0.9)
    with pytest.raises(
        UserError, match=r"^--measured-mfu: the peak of --gpu cpu is not known; give --peak-tflops too$"
    ):
        make_plan(Path(KAIYUAN_2B), ["train.precision=fp32"], 1, device_named("cpu"), None, 0.4)
    with pytest.raises(UserError, match="the recipe's own layout is not legal on --gpus 6; give"):
        make_plan(
            Path(KAIYUAN_2B),
            ["parallel.pipeline_model_parallel_size=4", "train.global_batch_size=1536"],
            6,
            device_named("h100"),
            None,
            0.3,
        )


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


@pytest.mark.parametrize(
    "option",
    [
        *("--mtbf", "--restart-minutes", "--save-seconds", "--price"),
        *("--mfu", "--measured-mfu", "--gpu-memory-gib", "--peak-tflops"),
    ],
)
@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e300"])
def test_numbers_that_mean_nothing_are_refused(option: str, value: str) -> None:
    with pytest.raises(UsageError) as refused:
        app(["plan", KAIYUAN_2B, "--gpus", "8", "--gpu", "h100", option, value], standalone_mode=False)
    assert f"'{option}'" in refused.value.format_message()


def test_mistakes_name_what_to_change() -> None:
    with pytest.raises(UserError, match="--gpu-memory-gib"):
        planned(8, "mi300", peak_tflops=1307)
    with pytest.raises(UserError, match=r"train.precision: bf16 does not run on --gpu 910a; use fp32 or fp16"):
        planned(8, "910a", "train.precision=bf16")
    with pytest.raises(UserError, match=r"^backend\.attention: torch does not run on --gpu 910a; use auto$"):
        planned(8, "910a", "backend.attention=torch")
    with pytest.raises(UserError, match=r"unknown field; here it is train\.seq_length"):
        planned(8, "h100", "train.seq_len=1")
