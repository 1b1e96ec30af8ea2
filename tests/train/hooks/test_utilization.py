"""MFU in the metrics, against the recipe's own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.train.hooks.utilization import utilization
from tests.helpers.training.small_run import SEQ_LENGTH, TOKENS_PER_STEP, VOCAB, events, fit_here, metrics

SHORT = f"train.train_tokens={2 * TOKENS_PER_STEP}"
# Of small_run's network: queries, keys, values and projection, three matrices of the MLP; two layers and the head.
LAYERS, HIDDEN, FFN, HEAD_SIZE = 2, 64, 128, 16


def by_hand(recipe: Path) -> tuple[float, float]:
    """FLOPs of a token: 6 a weight, and 12 an element of scores and values, or half of these."""
    model = load_run(recipe).model
    query, keys = model.num_attention_heads * HEAD_SIZE, model.num_query_groups * HEAD_SIZE
    weights = LAYERS * HIDDEN * (query + 2 * keys + query + 3 * FFN) + VOCAB * HIDDEN
    attention = 12 * LAYERS * query * SEQ_LENGTH
    return 6 * weights + attention, 6 * weights + attention / 2


def test_rows_have_both_conventions(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_here(recipe, f"run_dir={tmp_path}", SHORT, "monitor.peak_tflops=0.5")
    full, causal = by_hand(recipe)
    (told,) = events(tmp_path, "utilization")
    assert (told["flops_per_token"], told["flops_per_token_causal"]) == (full, causal)
    assert (told["peak_tflops"], told["peak_source"]) == (0.5, "monitor.peak_tflops")
    assert "all pairs" in told["convention"] and "half" in told["convention"]
    rows = metrics(tmp_path)
    assert len(rows) == 2
    for row in rows.values():
        assert row["tflops_per_device"] == pytest.approx(full * row["tokens_per_second"] / 1e12)
        assert row["mfu"] == pytest.approx(row["tflops_per_device"] / 0.5)
        assert row["mfu_causal"] == pytest.approx(row["mfu"] * causal / full)
    assert f"MFU {rows[2]['mfu']:.1%} | 0:00:00 left" in capsys.readouterr().err


def test_no_peak_no_mfu(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_here(recipe, f"run_dir={tmp_path}", SHORT)
    (told,) = events(tmp_path, "utilization")
    assert told["peak_tflops"] is None and told["peak_source"].startswith("not known for cpu in fp32")
    row = metrics(tmp_path)[2]
    assert row["mfu"] is None and row["mfu_causal"] is None and row["tflops_per_device"] > 0
    assert "MFU" not in capsys.readouterr().err


def test_devices_share_the_work(recipe: Path) -> None:
    run, device = load_run(recipe, ["monitor.peak_tflops=1"]), platform.activate("cpu")
    alone, eight = (utilization(run, device, devices).columns(tokens_per_second=1e6) for devices in (1, 8))
    assert alone["mfu"] == pytest.approx(by_hand(recipe)[0] * 1e6 / 1e12)
    for name, value in alone.items():
        assert value is not None and eight[name] == pytest.approx(value / 8)
