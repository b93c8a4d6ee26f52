"""A headless Chromium for the tests of pages: a pinned one, fetched once, that needs neither root nor other packages.

The npm package that tests/browser/package-lock.json names holds the program and its libraries. It is for Linux on
x86-64. A person's own browser is never used: a page is looked at with the same one everywhere.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import brotli
import requests
from websockets.sync.client import connect

from local import children
from local.worker import ROOT

LOCK = ROOT / "tests" / "browser"
CACHE = ROOT / "out" / "browser"
FETCH_S, START_S, ANSWER_S = 600, 60, 60
MAX_MESSAGE = 256 * 1024**2  # bytes; a screenshot is one message
PHONE = 600  # pixels: what is narrower is one
ARGUMENTS = (
    "--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{home}/fonts</dir><cachedir>{profile}/fonts</cachedir></fontconfig>
"""


class BrowserError(Exception):
    """The browser cannot be had, or does not do as it is told; why, in one sentence."""


def install(cache: Path = CACHE) -> Path:
    """The folder with the program, which is fetched only if the lock is another than the last time.

    Raises:
        BrowserError: it cannot be fetched.
    """
    names = ("package.json", "package-lock.json")
    version = hashlib.sha256(b"".join((LOCK / name).read_bytes() for name in names)).hexdigest()[:16]
    home = cache / version
    if home.exists():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        new = Path(scratch)
        for name in names:
            shutil.copy(LOCK / name, new)
        _fetch(new)
        _unpack(new / "node_modules" / "@sparticuz" / "chromium" / "bin", new / "browser")
        (new / "browser").rename(home)
    return home


def _fetch(folder: Path) -> None:
    """Let npm install what the lock names; it compares the digests."""
    # Where pip is told of a company's own certificates, node is to trust them too.
    certificates = {"NODE_EXTRA_CA_CERTS": os.environ["PIP_CERT"]} if "PIP_CERT" in os.environ else {}
    npm = Path(sys.executable).with_name("npm")
    command = [str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=folder, env={**certificates, **os.environ}, capture_output=True, text=True, check=False,
        timeout=FETCH_S,
    )  # fmt: skip
    if done.returncode:
        raise BrowserError(f"npm could not install the browser: {done.stderr.strip()[-1000:]}")


def _unpack(source: Path, target: Path) -> None:
    for name in ("al2023.tar.br", "fonts.tar.br", "swiftshader.tar.br"):
        with tarfile.open(fileobj=io.BytesIO(brotli.decompress((source / name).read_bytes()))) as archive:
            archive.extractall(target, filter="data")
    program = target / "chromium"
    program.write_bytes(brotli.decompress((source / "chromium.br").read_bytes()))
    program.chmod(0o755)


class Browser:
    """A running Chromium with one page. Use it as a context manager.

    Attributes:
        errors: what went wrong on the page: exceptions, errors of the console, what its policy refused.
        requests: every address that was asked for, the page's own among them.

    Raises:
        BrowserError: it does not start, or does not do in time as it is told.
    """

    def __init__(self, home: Path) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._home = home
        self._number = 0
        self._loaded = False

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        profile = Path(self._folder.name)
        fonts = profile / "fonts.conf"
        fonts.write_text(FONTS.format(home=self._home, profile=profile))
        environment = {
            "HOME": str(profile),
            "LD_LIBRARY_PATH": str(self._home / "lib"),
            "FONTCONFIG_FILE": str(fonts),
        }
        command = [str(self._home / "chromium"), *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"]
        self._process = children.start(
            command, environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._socket = connect(self._address(profile), max_size=MAX_MESSAGE)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._end()

    def show(self, page: Path, size: tuple[int, int], *, dark: bool = False) -> None:
        """Load a file, forgetting the errors and requests of the one before; what is narrow is a phone."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < PHONE}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.errors.clear()
        self.requests.clear()
        self._loaded = False
        if problem := self._call("Page.navigate", url=page.resolve().as_uri()).get("errorText"):
            raise BrowserError(f"{page}: {problem}")
        end = time.monotonic() + ANSWER_S
        while not self._loaded:
            self._hear(end)

    def value(self, expression: str) -> Any:
        """What JavaScript on the page comes to; a promise is waited for."""
        said = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in said:
            raise BrowserError(_exception(said["exceptionDetails"]))
        return said["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """The whole page, as a PNG file."""
        said = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(said["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        end = time.monotonic() + ANSWER_S
        while True:
            said = self._hear(end)
            if said.get("id") != self._number:
                continue
            if "error" in said:
                raise BrowserError(f"{method}: {said['error']['message']}")
            return said["result"]

    def _hear(self, end: float) -> dict[str, Any]:
        """The next message; what it says of the page is noted."""
        try:
            said: dict[str, Any] = json.loads(self._socket.recv(timeout=max(0, end - time.monotonic())))
        except TimeoutError:
            raise BrowserError(f"the browser says nothing for {ANSWER_S} s") from None
        told = said.get("params", {})
        match said.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(_exception(told["exceptionDetails"]))
            case "Log.entryAdded" if told["entry"]["level"] in {"warning", "error"}:
                self.errors.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" if told["type"] in {"warning", "error", "assert"}:
                self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in told["args"]))
            case "Page.javascriptDialogOpening":
                self.errors.append(f"a dialog: {told['message']}")
        return said

    def _address(self, profile: Path) -> str:
        """Of the page's socket; the browser writes into a file of its profile where it listens."""
        file = profile / "DevToolsActivePort"
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            # The second line is written with the first, in one go.
            if file.exists() and len(lines := file.read_text().splitlines()) > 1:
                pages = requests.get(f"http://127.0.0.1:{lines[0]}/json/list", timeout=ANSWER_S).json()
                return next(str(page["webSocketDebuggerUrl"]) for page in pages if page["type"] == "page")
            time.sleep(0.05)
        raise BrowserError(f"the browser did not start: exit code {self._process.poll()}")

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def _exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])
