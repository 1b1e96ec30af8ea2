"""Chromium without a window, over its DevTools protocol: what a page looks like and does at a width and scheme."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
_SECONDS = 120.0


def find_browser() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def require_browser() -> str:
    """Return the browser, or skip the test: no requirement of the project brings one."""
    found = find_browser()
    if found is None:
        pytest.skip(
            "pages are not looked at: there is no Chromium (apt-get install chromium); other tests read their HTML"
        )
    return found


class Tab:
    """One page of the browser."""

    def __init__(self, socket: Any, loop: asyncio.AbstractEventLoop):
        self._socket, self._loop = socket, loop
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and what it answers."""
        return self._loop.run_until_complete(asyncio.wait_for(self._send(method, parameters), _SECONDS))

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path, width: int, scheme: str = "light", scripts: bool = True, media: str = "") -> None:
        self.events.clear()
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)
        self.send("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + _SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < end, "the page did not load"
            self.send("Page.getLayoutMetrics")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and what was loaded from elsewhere but failed."""
        said = []
        for event in self.events:
            parameters = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                said.append(str(parameters["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                said.append(str(parameters["args"]))
            elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                said.append(parameters["entry"]["text"])
        return said

    def point(self, x: float, y: float, kind: str = "mouseMoved", pressed: bool = False) -> None:
        """Move the mouse, or press or release its left button."""
        button = "none" if kind == "mouseMoved" and not pressed else "left"
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(pressed), clickCount=1)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def print_pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"])


@contextmanager
def open_tab(browser: str) -> Iterator[Tab]:
    """Start a browser of its own with one empty page."""
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [browser, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _wait_for_port(Path(folder) / "DevToolsActivePort", process)
            session, socket = loop.run_until_complete(_connect(port))
            yield Tab(socket, loop)
            loop.run_until_complete(session.close())
        finally:
            process.terminate()
            process.wait(_SECONDS)
            loop.close()


def _wait_for_port(path: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + _SECONDS
    while not path.is_file() or not path.read_text().strip():
        assert process.poll() is None and time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    return int(path.read_text().split()[0])


async def _connect(port: int) -> tuple[aiohttp.ClientSession, Any]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        page = next(one for one in await answer.json() if one["type"] == "page")
    return session, await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
