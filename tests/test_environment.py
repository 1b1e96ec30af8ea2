from __future__ import annotations

import os

import pytest

from megatron_kaiyuan.environment import environment


def test_variables_are_set_for_the_body_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAIYUAN_KNOWN", "before")
    monkeypatch.delenv("KAIYUAN_UNKNOWN", raising=False)
    with pytest.raises(ZeroDivisionError), environment({"KAIYUAN_KNOWN": "in", "KAIYUAN_UNKNOWN": "in"}):
        assert (os.environ["KAIYUAN_KNOWN"], os.environ["KAIYUAN_UNKNOWN"]) == ("in", "in")
        raise ZeroDivisionError
    assert os.environ["KAIYUAN_KNOWN"] == "before" and "KAIYUAN_UNKNOWN" not in os.environ
