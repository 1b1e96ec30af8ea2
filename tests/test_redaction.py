"""No credential in what is shown or kept; what is none stays as it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.reading.inputs import find_inputs, open_stored
from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.monitor.sinks import open_sinks
from megatron_kaiyuan.redaction import redact, redact_values

SECRET = "s3cr3tValue42"
SECRETIVE = [
    f"https://user:{SECRET}@host/a.jsonl",
    f"https://{SECRET}@host/a.jsonl",
    f"s3://user:{SECRET}%2F@bucket/a.jsonl: not found",
    f"simplecache::https://u:{SECRET}@host/a",
    f"https://host/a.jsonl?X-Amz-Signature={SECRET}&part=1",
    f"https://host/a.jsonl?part=1&X-Amz-Security-Token={SECRET}",
    f"https://host/a.jsonl?AWSAccessKeyId={SECRET}",
    f"https://a.blob.core.windows.net/c/a.jsonl?sv=2020&sig={SECRET}",
    f"https://host/a?access_token={SECRET}",
    f"https://host/a?api-key={SECRET}#x",
    f"https://host/a#access_token={SECRET}",
    f"abfs://container:{SECRET}@account/a",
    f"Authorization: Bearer {SECRET}",
    f"{{'authorization': '{SECRET}'}}",
    f"refused bearer {SECRET}0123456789",
]
PLAIN = [
    "https://host/a.jsonl?part=1&page=2",
    "abfs://container@account.dfs.core.windows.net/a",
    "data/user@host/a.jsonl",
    "train.train_tokens=5 eod_token=<|endoftext|>",
    "mail user@host about https://host/b",
    "a basic tokenizer",
]


@pytest.mark.parametrize("text", SECRETIVE)
def test_credentials_go_and_a_second_time_changes_nothing(text: str) -> None:
    shown = redact(text)
    assert SECRET not in shown and "***" in shown
    assert redact(shown) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(alphabet=st.characters(exclude_characters="/?# \t\n", categories=("L", "N", "P")), min_size=1))
def test_any_user_information_goes(user: str) -> None:
    assert redact(f"https://{user}:x@host/path") == "https://***@host/path"


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "MY_SECRET"])
def test_values_of_secret_variables_go(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    assert redact(f"login with {SECRET} failed") == "login with *** failed"


def test_errors_warnings_events_and_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = SECRETIVE[0]
    assert SECRET not in str(UserError(f"{url}: cannot be read"))
    assert SECRET not in describe(OSError(2, "not found", url))
    logging.getLogger("megatron_kaiyuan").warning(f"{url}: slow")
    assert redact_values({"a": [{"path": url, "steps": 3}], "db_password": "short", "b": None}) == {
        "a": [{"path": redact(url), "steps": 3}],
        "db_password": "***",
        "b": None,
    }
    sinks = open_sinks(tmp_path, MonitorConfig(), 1, {})
    sinks.event("init_from", path=url, notes=[url])
    sinks.close()
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["path"] == redact(url) and row["notes"] == [redact(url)]
    assert SECRET not in "".join(capsys.readouterr())


def test_an_input_is_opened_with_its_credentials_and_named_without(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://bucket/a.jsonl?token=first-token-1", "wb") as file:
        file.write(b"one")
    (found,) = find_inputs(["memory://bucket/a.jsonl?token=first-token-1"])
    assert found.name == "memory:///bucket/a.jsonl?token=***"
    assert "first-token-1" not in repr(found)
    with open_stored(found) as stored:
        assert stored.read() == b"one"
    with pytest.raises(UserError) as caught:
        find_inputs(["memory://bucket/missing.jsonl?token=first-token-1"])
    assert "first-token-1" not in str(caught.value)
