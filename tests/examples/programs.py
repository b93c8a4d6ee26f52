"""The examples as processes, and what they talk to: a worker's half of the job API that a test plays."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from local.exchange import Exchange
from local.hostile_server import HostileServer, Peer
from local.runpod_api import ENDPOINT, LocalRunPod
from local.worker import ROOT

NODE = Path(sys.executable).parent / "node"
COMMANDS = {
    "edit.py": [sys.executable, str(ROOT / "examples" / "edit.py")],
    "edit.sh": ["bash", str(ROOT / "examples" / "edit.sh")],
    "edit.mjs": [str(NODE), str(ROOT / "examples" / "edit.mjs")],
}
KEY = "the-caller's-key"
END_S = 60.0


class Program:
    """An example that runs.

    Args:
        name: of the file.
        folder: where it runs; its picture goes to `file` there.
        base_url: of RunPod's API.
        arguments: instead of an address, a prompt and `file`.
        more: further variables.
    """

    def __init__(
        self, name: str, folder: Path, base_url: str, *arguments: str, more: Mapping[str, str] | None = None
    ) -> None:
        lacks = [tool for tool in ("bash", "curl", "jq") if not shutil.which(tool)]
        assert not lacks, f"install {', '.join(lacks)}, which edit.sh needs"
        self.file = folder / f"{name}.png"
        self._said = folder / f"{name}.out", folder / f"{name}.err"
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # where runpod looks for a key of its own
            "NO_PROXY": "127.0.0.1",
            "RUNPOD_API_KEY": KEY,
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_ENDPOINT_BASE_URL": base_url,
            **(more or {}),
        }
        command = [*COMMANDS[name], *(arguments or ("https://example.com/a.jpg", 'make it "warm"', str(self.file)))]
        with self._said[0].open("w") as out, self._said[1].open("w") as err:
            self._process = subprocess.Popen(command, env=variables, cwd=folder, stdout=out, stderr=err)

    @property
    def told(self) -> str:
        """What it has said of its progress, or of what is wrong."""
        return self._said[1].read_text()

    @property
    def said(self) -> str:
        """What it has said on stdout."""
        return self._said[0].read_text()

    def end(self) -> int:
        """Its exit code, when it has ended."""
        try:
            return self._process.wait(END_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


class Played:
    """A worker that does what a test says, over HTTP."""

    def __init__(self, api: LocalRunPod) -> None:
        self._base = f"{api.base_url}/{ENDPOINT}"
        self._session = requests.Session()
        self._session.trust_env = False

    def take(self) -> dict[str, Any]:
        """The next job, when there is one."""
        end = time.monotonic() + END_S
        while time.monotonic() < end:
            answer = self._session.get(f"{self._base}/job-take/played?job_in_progress=1", timeout=20)
            if answer.status_code == requests.codes.ok:
                job: dict[str, Any] = answer.json()
                return job
        raise TimeoutError("no job came")

    def post(self, job: Mapping[str, Any], **answer: Any) -> None:
        """Say something of a job: its output, error or progress."""
        self._session.post(f"{self._base}/job-done/played/{job['id']}", json=answer, timeout=20).raise_for_status()


class Unsteady(HostileServer):
    """RunPod's API, which answers the first `times` requests below `path` with 503."""

    def __init__(self, api: LocalRunPod, path: str, times: int) -> None:
        self._port, self._path, self._left = api.port, path, times
        super().__init__(self._answer)
        self.base_url = f"http://127.0.0.1:{self.port}/v2"

    @property
    def failed(self) -> bool:
        """Whether it has."""
        return not self._left

    def _answer(self, peer: Peer) -> None:
        while True:
            peer.heard = b""
            peer.hear()
            if self._path in peer.target and self._left:
                self._left -= 1
                peer.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            else:
                Exchange(peer, self._port, "").pass_on()
