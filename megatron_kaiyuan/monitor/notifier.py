"""The process that runs `monitor.notify_command`: one event after the other, each within a time limit.

    python -m megatron_kaiyuan.monitor.notifier     reads settings, then events, as lines of JSON from standard input

Each event is JSON on the command's standard input and in variables; what the command prints goes to RUN_DIR/notify.log.
One line on standard output names each failure. When the input ends without a `stop` or `end`, the job has died, and
that is an event too. Needs neither torch nor a device.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megatron_kaiyuan import logs

LOG = "notify.log"
# Of events that wait, the oldest is dropped first; after the job's end, all but the last once so many commands' time
# limits have passed.
_WAITING, _LIMITS_AT_END = 64, 3
_PRINTED_BYTES = 4096
_LOG_BYTES = 1 << 20
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)


class Input:
    """Lines of a pipe, read as they come."""

    def __init__(self, descriptor: int):
        self._descriptor, self._rest, self.ended = descriptor, b"", False

    def lines(self, wait: bool) -> list[dict[str, Any]]:
        """Whole lines that have come; none at the end.

        Args:
            wait: for at least some bytes.
        """
        os.set_blocking(self._descriptor, wait)
        try:
            while not self.ended:
                content = os.read(self._descriptor, 1 << 16)
                self.ended = not content
                self._rest += content
                os.set_blocking(self._descriptor, False)
        except BlockingIOError:
            pass
        *whole, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in whole]


def main() -> None:
    # Handlers, not SIG_IGN, which the command would inherit.
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: None)
    source = Input(sys.stdin.fileno())
    first = source.lines(wait=True)
    if not first:
        return
    settings, messages = first[0], first[1:]
    waiting: collections.deque[dict[str, Any]] = collections.deque(maxlen=_WAITING)
    step, is_over, deadline = 0, False, float("inf")
    while True:
        for message in messages:
            # A hang has none: it is found in the middle of a step.
            step = message["step"] = message["step"] if message["step"] is not None else step
            is_over = is_over or message.get("ends", False)
            if message.get("event"):
                waiting.append(message)
        if source.ended and not is_over:
            is_over = True
            if settings["end"]:
                waiting.append({"event": "end", "step": step, "details": {"finished": False, "time": time.time()}})
        if source.ended:
            deadline = min(deadline, time.monotonic() + _LIMITS_AT_END * settings["seconds"])
        while len(waiting) > 1 and time.monotonic() > deadline:
            waiting.popleft()
        if waiting:
            notify(settings, waiting.popleft())
        elif source.ended:
            return
        messages = [] if source.ended else source.lines(wait=not waiting)


def notify(settings: dict[str, Any], message: dict[str, Any]) -> None:
    """Run the command for one event."""
    name, details = message["event"], message["details"]
    event = {
        "event": name,
        "text": text(settings["run_dir"], name, message["step"], details),
        "run_dir": settings["run_dir"],
        "host": settings["host"],
        "step": message["step"],
        "time": details.get("time"),
        "details": details,
    }
    variables = {f"KAIYUAN_{key.upper()}": str(event[key]) for key in ("event", "text", "run_dir", "host", "step")}
    began = time.monotonic()
    printed, ending = run_command(settings["command"], variables, json.dumps(event) + "\n", settings["seconds"])
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):
        log(Path(settings["run_dir"]) / LOG, f"{when} {name}: {ending}, {time.monotonic() - began:.1f} s", printed)
    if ending != "done":
        lines = printed.strip().splitlines()
        last = f" ({lines[-1][:200]})" if lines else ""
        with contextlib.suppress(OSError):  # the job has ended, or does not read
            os.set_blocking(sys.stdout.fileno(), False)
            os.write(sys.stdout.fileno(), f"{ending} for event {name}{last}; see {LOG}\n".encode())


def run_command(command: str, variables: dict[str, str], typed: str, seconds: float) -> tuple[str, str]:
    """Run a shell's command in a session of its own, which is killed at the end of the time.

    Returns:
        The first bytes that it printed, and how it ended: "done", or what went wrong.
    """
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    # Less than a pipe holds, so that no reader is waited for.
    with contextlib.suppress(OSError):
        process.stdin.write(typed.encode())
        process.stdin.close()
    deadline = time.monotonic() + seconds
    printed = _read_until(process.stdout.fileno(), deadline)
    try:
        code: int | None = process.wait(max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        code = None
    # Also what it has left in the background, whose output is not to be waited for.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if code is None:
        return printed, f"did not end within {seconds:g} s and was killed"
    return printed, "done" if code == 0 else f"exit code {code}"


def _read_until(descriptor: int, deadline: float) -> str:
    """The first bytes of a pipe, which is emptied to its end or the deadline."""
    kept = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            content = os.read(descriptor, 1 << 16)
            if not content:
                break
            kept += content[: _PRINTED_BYTES - len(kept)]
    return kept.decode(errors="replace")


def log(path: Path, line: str, printed: str) -> None:
    """Append an event and what its command printed; a log that has grown large is moved aside first."""
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        os.replace(path, path.with_name(f"{path.name}.1"))
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join([line, "\n", *(f"  {one}\n" for one in printed.splitlines())]))


def text(run_dir: str, event: str, step: int | None, details: dict[str, Any]) -> str:
    """Return an event in one line for a person."""
    at = "" if step is None else f" at step {step}"
    said = {
        "start": f"started{at} of {details.get('total_steps')} on {details.get('world_size')} devices",
        "save": f"saved step {step}",
        "bad_step": f"bad step {step}: {details.get('reason')} ({details.get('action')})",
        "hang": f"hangs: {details.get('message')}",
        "stop": f"stopped{at} by a signal, and saved; the same command resumes it",
        "end": f"finished{at}" if details.get("finished") else f"ended{at} without a stop: killed, or after an error",
    }[event]
    return f"{Path(run_dir).name}: {said}"


if __name__ == "__main__":
    logs.set_up()
    main()
