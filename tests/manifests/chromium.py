"""A headless Chromium, driven over its DevTools protocol: open a page, ask it, move its mouse, press its keys."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def executable() -> str | None:
    """Where Chromium is, if it is."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome"))
    return next((path for path in found if path), None)


class Page:
    """A tab of the browser. complaints: every exception and console error so far."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._last = loop, socket, 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command; its result. Raises RuntimeError when the browser refuses it."""
        return self._loop.run_until_complete(self._send(method, parameters))

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        while True:
            answer = json.loads((await self._socket.receive(timeout=60)).data)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "assert"):
                self.complaints.append(str([argument.get("value") for argument in about["args"]]))
            case "Log.entryAdded" if about["entry"]["level"] == "error":
                self.complaints.append(about["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"][:80])

    def open(self, path: Path, ready: str = "document.documentElement?.dataset.ready === 'yes'") -> None:
        """Open a local file and wait until it says that it is ready."""
        self.send("Page.navigate", url=path.absolute().as_uri())
        self.wait(ready)
        self.wait("performance.getEntriesByType('paint').length > 0")  # until then the browser drops clicks

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true. Raises TimeoutError with what the page complained of."""
        until = time.monotonic() + seconds
        while not self.ask(condition):
            if time.monotonic() > until:
                raise TimeoutError(f"{condition}: not within {seconds} s; {self.complaints}")
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        """The value of an expression (awaited, when a promise). Raises RuntimeError where it throws."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """The window's size, and whether the person likes it dark."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str, code: int) -> None:
        """A key, down and up, for what has the focus."""
        typed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self._until_heard(
            "keyup", "Input.dispatchKeyEvent", [{"type": kind, **typed} for kind in ("rawKeyDown", "keyUp")]
        )

    def point(self, selector: str, click: bool = False) -> None:
        """Move the mouse onto an element; press its button there."""
        at = "(e => (e.scrollIntoView({block: 'center', behavior: 'instant'}), e.getBoundingClientRect().toJSON()))"
        box = self.ask(f"{at}(document.querySelector({json.dumps(selector)}))")
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **place)
        if click:
            pressed = {"button": "left", "clickCount": 1, **place}
            kinds = ("mousePressed", "mouseReleased")
            self._until_heard("click", "Input.dispatchMouseEvent", [{"type": kind, **pressed} for kind in kinds])

    def _until_heard(self, event: str, method: str, inputs: list[dict[str, Any]]) -> None:
        """Send inputs until the page has handled the event that they end in.

        The page hears of them later than the browser does, and before a new page is painted they are dropped.
        """
        listener = f"'{event}', () => setTimeout(() => (window.heard = true)), {{capture: true, once: true}}"
        self.ask(f"void (window.heard = false, addEventListener({listener}))")
        for _ in range(10):
            for parameters in inputs:
                self.send(method, **parameters)
            with contextlib.suppress(TimeoutError):
                return self.wait("window.heard", 3)
        raise TimeoutError(f"the page heard no {event}")

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot as PNG, of the window or the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A fresh browser with one empty tab; it ends with the block."""
    program = executable()
    assert program is not None, "no Chromium is installed"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loop = asyncio.new_event_loop()
        session = None
        try:
            port = _port(Path(profile, "DevToolsActivePort"), process)
            session, socket = loop.run_until_complete(_connect(port))
            yield Page(loop, socket)
        finally:
            if session is not None:
                loop.run_until_complete(session.close())
            loop.close()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(note: Path, process: subprocess.Popen) -> str:
    """The port that the browser writes into its profile once it listens."""
    for _ in range(600):
        with contextlib.suppress(OSError, IndexError):
            return note.read_text().splitlines()[0]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"Chromium did not start (exit status {process.poll()})")


async def _connect(port: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        tabs = await answer.json(content_type=None)
    address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    return session, await session.ws_connect(address, max_msg_size=0)
