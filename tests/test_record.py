"""Totals of one rank against NumPy, and what is refused; whole runs: tests/train/hooks/test_recorded_metrics.py."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.metrics import (
    Metric,
    Recorder,
    announce,
    calls,
    close_recorder,
    has_news,
    not_recorded,
    open_recorder,
    record,
)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    yield open_recorder(torch.float64)
    close_recorder()


NUMBERS = st.lists(st.tuples(st.floats(-1e6, 1e6) | st.just(math.nan), st.booleans()), min_size=1, max_size=20)


@given(values=NUMBERS, reduce=st.sampled_from(["mean", "sum", "max"]))
def test_a_total_is_numpys(values: list[tuple[float, bool]], reduce: Any) -> None:
    recorder = Recorder(torch.float64)
    for value, on_device in values:
        recorder.add(Metric("test/a", reduce), torch.tensor([value], dtype=torch.float64) if on_device else value)
    recorder.agree([recorder.news()])
    (total,) = recorder.take()
    numbers = np.array([value for value, _ in values])
    parts = [total.host, *([] if total.device is None else [float(total.device)])]
    assert total.count == len(values)
    expected = np.max(numbers) if reduce == "max" else np.sum(numbers)
    found = np.max(parts) if reduce == "max" else np.sum(parts)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-6)
    assert recorder.take()[0].count == 0


def test_a_tensor_may_be_used_again(recorder: Recorder) -> None:
    value = torch.ones((), requires_grad=True)
    record("test/a", value, "sum")
    with torch.no_grad():
        value.zero_()
    record("test/a", np.float32(2), "sum")
    record("test/a", True, "sum")
    total = recorder.totals["test/a"]
    assert total.host == 3 and total.device == 1 and not total.device.requires_grad


def test_what_is_refused(recorder: Recorder) -> None:
    record("test/a", 1, "sum")
    with pytest.raises(ValueError, match="test/a is recorded as sum and as mean"):
        record("test/a", 1)
    for name in ("loss", "/a", "test/", "test//a", "test/a b", "test/a\n"):
        with pytest.raises(ValueError, match=f"metric {re.escape(name)} is not named room/what"):
            record(name, 1)
    with pytest.raises(ValueError, match="test/b as max and as sum"):
        recorder.agree([[Metric("test/b", "sum")], [Metric("test/b", "max")]])


def test_news_ends_with_the_agreement(recorder: Recorder) -> None:
    assert not has_news()
    announce("test/b", "max", terminal=True)
    assert has_news() and calls() == 0
    recorder.agree([recorder.news(), [Metric("test/a", "sum"), Metric("test/b", "max")]])
    assert recorder.agreed == [Metric("test/a", "sum"), Metric("test/b", "max", terminal=True)] and not has_news()
    record("test/a", 1.0, "sum")
    assert not has_news() and calls() == 1
    with pytest.raises(ValueError, match="test/a is recorded as sum and as max"):
        record("test/a", 1.0, "max")


def test_repeated_passes_record_nothing(recorder: Recorder) -> None:
    with not_recorded():
        record("test/a", 1.0)
    assert not recorder.totals and calls() == 0
    close_recorder()
    record("test/a", 1.0)
    announce("test/a")
    assert calls() == 0 and not has_news()
