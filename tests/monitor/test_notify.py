"""`monitor.notify_command`: real commands, a real HTTP server, commands that fail or hang, and a job that is killed."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.monitor.notify import Notify, report_hang
from megatron_kaiyuan.monitor.sinks import open_sinks

ROOT = Path(__file__).resolve().parents[2]
START = {"event": "start", "step": 0, "tokens": 0, "total_steps": 20, "world_size": 2, "time": 1.0}
STOP = {"event": "stop", "step": 20, "finished": True, "time": 2.0}
ROW = {"step": 7}


def wait_for(path: Path, lines: int, seconds: float = 60.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline, path.read_text() if path.exists() else f"no {path}"
        time.sleep(0.02)
    return path.read_text().splitlines()


def notifying(run_dir: Path, command: str, **fields: Any) -> Notify:
    return Notify(run_dir, MonitorConfig(notify_command=command, **fields))


def test_each_event_comes_as_json_and_in_variables(tmp_path: Path) -> None:
    told = tmp_path / "told"
    sink = notifying(tmp_path, f'cat >> {told}; echo "$KAIYUAN_EVENT|$KAIYUAN_STEP|$KAIYUAN_TEXT" >> {told}.words')
    bad = {"event": "bad_step", "step": 8, "reason": "loss is NaN", "action": "skip", "documents": [[0] * 5000]}
    for row in (START, {"event": "checkpoint", "step": 5, "bytes": 3}, {"event": "utilization"}, bad, STOP):
        sink.event(row)
    sink.close()
    events = [json.loads(line) for line in wait_for(told, 4)]
    assert [(one["event"], one["step"]) for one in events] == [("start", 0), ("save", 5), ("bad_step", 8), ("end", 20)]
    assert {one["run_dir"] for one in events} == {str(tmp_path)} and events[1]["details"]["bytes"] == 3
    name = tmp_path.name
    assert wait_for(tmp_path / "told.words", 4) == [
        f"start|0|{name}: started at step 0 of 20 on 2 devices",
        f"save|5|{name}: saved step 5",
        f"bad_step|8|{name}: bad step 8: loss is NaN (skip)",
        f"end|20|{name}: finished at step 20",
    ]
    (_, *_, last) = (tmp_path / "notify.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d end: done, \d+\.\d s", last)


def test_only_the_events_that_are_asked_for(tmp_path: Path) -> None:
    told = tmp_path / "told"
    sink = notifying(tmp_path, f'echo "$KAIYUAN_EVENT" >> {told}', notify_events=["stop"])
    sink.event(START)
    sink.event(STOP | {"finished": False})
    sink.close()
    assert wait_for(told, 1) == ["stop"]


def test_a_slow_command_is_killed_and_no_event_waits_for_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # As no one else sleeps.
    sleep = f"600.{os.getpid()}"
    sink = notifying(tmp_path, f"echo begun; sleep {sleep}", notify_timeout_seconds=0.5)
    began = time.monotonic()
    for step in range(2000):
        sink.event({"event": "checkpoint", "step": step, "text": "x" * 400})
    assert time.monotonic() - began < 30, (
        "each command takes half a second: an event for a full pipe is dropped at once"
    )
    wait_for(tmp_path / "notify.log", 2)
    sink.write(ROW)
    sink.event(STOP)
    sink.close()
    errors = capfd.readouterr().err
    assert "notify_command: did not end within 0.5 s and was killed for event save (begun); see notify.log" in errors
    assert re.search(r"\d{3,} events were dropped", errors)
    left = subprocess.run(["pgrep", "-f", f"^sleep {sleep}$"], capture_output=True, check=False)
    assert left.returncode == 1, "what it has started is killed with it"


def test_a_command_that_fails_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sink = notifying(tmp_path, "echo no such host; exit 6")
    sink.event(START)
    wait_for(tmp_path / "notify.log", 2)
    sink.event(STOP)
    sink.close()
    errors = capfd.readouterr().err.splitlines()
    assert errors[0] == ("warning: monitor.notify_command: exit code 6 for event start (no such host); see notify.log")
    assert len(errors) == 2


def test_much_output_is_cut_and_the_log_stays_small(tmp_path: Path) -> None:
    sink = notifying(tmp_path, "head -c 50000000 /dev/zero | tr '\\0' x")
    sink.event(STOP)
    sink.close()
    wait_for(tmp_path / "notify.log", 2)
    assert (tmp_path / "notify.log").stat().st_size < 5000
    (tmp_path / "notify.log").write_text("x" * (2 << 20))
    sink = notifying(tmp_path, "true")
    sink.event(STOP)
    sink.close()
    wait_for(tmp_path / "notify.log.1", 1)
    assert (tmp_path / "notify.log").stat().st_size < 100


def test_a_job_that_is_killed_is_an_end(tmp_path: Path) -> None:
    """By SIGKILL, of all of its process group, as launchers do."""
    told = tmp_path / "told"
    job = (
        "import os, signal, sys; from pathlib import Path; from megatron_kaiyuan.config import MonitorConfig;"
        "from megatron_kaiyuan.monitor.notify import Notify;"
        f"sink = Notify(Path({str(tmp_path)!r}), MonitorConfig(notify_command='cat >> {told}'));"
        f"sink.event({START!r}); sink.write({ROW!r}); os.killpg(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", job], start_new_session=True, check=False)
    assert done.returncode == -9
    start, end = map(json.loads, wait_for(told, 2))
    assert start["event"] == "start"
    assert (end["event"], end["step"], end["details"]["finished"]) == ("end", 7, False)
    assert end["text"] == f"{tmp_path.name}: ended at step 7 without a stop: killed, or after an error"


def test_a_hang_is_reported_by_whoever_finds_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    report_hang(tmp_path, MonitorConfig(notify_command=f"cat >> {told}"), "rank 3 does not answer (host node7)")
    (line,) = wait_for(told, 1)
    event = json.loads(line)
    assert event["event"] == "hang" and event["text"].endswith("hangs: rank 3 does not answer (host node7)")


def test_a_killed_notifier_stops_nothing(tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, MonitorConfig(notify_command="true"), 10, {})
    notify = sinks._sinks[-1]
    assert isinstance(notify, Notify)
    notify._process.kill()
    notify._process.wait()
    sinks.event("bad_step", step=1, reason="r", action="skip")
    sinks.event("stop", step=1, finished=True)
    sinks.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@contextlib.contextmanager
def server() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An HTTP server on this machine: its address, and what was posted to it."""
    posted: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.headers["Content-Type"], content))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", posted
        httpd.shutdown()


def shown_commands() -> list[str]:
    """What the page on training gives as examples."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    return re.findall(r"^ *notify_command: '(.*)'", page, re.MULTILINE)


@pytest.mark.parametrize("number", [0, 1])
def test_the_webhooks_of_the_page(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'{tmp_path.name}: bad step 8: loss "inf" (skip)'
    with server() as (address, posted):
        monkeypatch.setenv("WEBHOOK", address)
        sink = notifying(tmp_path, shown_commands()[number])
        sink.event({"event": "bad_step", "step": 8, "reason": 'loss "inf"', "action": "skip"})
        sink.event(STOP)
        sink.close()
        deadline = time.monotonic() + 20
        while len(posted) < 2:
            assert time.monotonic() < deadline, (tmp_path / "notify.log").read_text()
            time.sleep(0.02)
    kind, content = posted[0]
    if number == 0:
        assert content.decode() == text
    else:
        assert kind == "application/json" and json.loads(content) == {"text": text}
