"""All local parts together: image host, bucket, job API, tiny model, and the worker in RunPod's production loop."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import requests

from local import tiny_model, worker
from local.bucket import LocalBucket
from local.runpod_api import ENDPOINT, FINAL, KEY, LocalRunPod
from local.web import ImageHost

READY_TIMEOUT_S = 120.0
JOB_TIMEOUT_S = 120.0
POLL_S = 0.1


def silent(_what: str) -> None:
    """Nobody wants to know."""


class Stack:
    """Everything that a job needs, below one folder. Use it as a context manager.

    Args:
        folder: for the model, the bucket's files and the worker's log.
        model: a model folder; one is made if it is missing.
        more: further variables of the worker.
        program: what Python runs as the worker.
        tell: called with what is about to be done.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: Path | None = None,
        more: dict[str, str] | None = None,
        program: Sequence[str] = worker.HANDLER,
        tell: Callable[[str], None] = silent,
    ) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self.bucket = LocalBucket(folder / "bucket")
        self.host = ImageHost()
        self.api = LocalRunPod()
        # Local parts are reached directly, whatever proxy this shell uses.
        self.session = requests.Session()
        self.session.trust_env = False
        self.process: subprocess.Popen[str] | None = None
        self._model = model or folder / "model"
        self._more = more or {}
        self._program = program
        self._tell = tell

    @property
    def environment(self) -> dict[str, str]:
        """Of the worker."""
        parts = (self.bucket.environment, self.api.worker_environment(), self._more)
        return worker.environment(self._model, *parts)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._model.exists():
            self._tell("making a tiny model")
            tiny_model.make(self._model)
        self._tell("starting an S3 server")
        self.bucket.start()
        self._tell("starting an image host and the job API")
        self.host.__enter__()
        self.api.__enter__()
        self._tell("starting the worker: it loads the model and warms it up")
        self.start_worker()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_worker(signal.SIGKILL)
        self.api.__exit__()
        self.host.__exit__()
        self.bucket.kill()

    def start_worker(self) -> None:
        """Start the worker, and return when it asks for its first job.

        Raises:
            RuntimeError: it ended instead.
        """
        asked = self.api.takes
        self.process = worker.start(self.environment, self.log, program=self._program)
        end = time.monotonic() + READY_TIMEOUT_S
        while self.api.takes == asked:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the worker did not start:\n{self.log.read_text()}")
            time.sleep(POLL_S)

    def stop_worker(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Signal the worker, wait for its end, and return its exit code."""
        if self.process is None:
            return None
        self.process.send_signal(number)
        code = self.process.wait(60)
        # The SDK's heartbeat is a process of its own and outlives a kill.
        worker.end_group(self.process)
        self.process = None
        return code

    def submit(self, said: Any) -> str:
        """POST to /run, as a client does, and return the job's id."""
        job_id: str = self._call("POST", "run", json={"input": said})["id"]
        return job_id

    def status(self, job_id: str) -> dict[str, Any]:
        """GET /status of a job."""
        return self._call("GET", f"status/{job_id}")

    def finished(
        self, job_id: str, timeout_s: float = JOB_TIMEOUT_S, seen: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Wait for a job's end, and return what the API says of it. `seen` is called with the progress meanwhile.

        Raises:
            TimeoutError: it did not end.
        """
        told = None
        end = time.monotonic() + timeout_s
        while (job := self.status(job_id))["status"] not in FINAL:
            if time.monotonic() > end:
                raise TimeoutError(f"job {job_id} is still {job['status']}")
            if seen and (news := job.get("output")) and news != told:
                seen(news)
                told = news
            time.sleep(POLL_S)
        return job

    def run(self, said: Any) -> dict[str, Any]:
        """Submit a job and wait for its end."""
        return self.finished(self.submit(said))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """POST to /cancel."""
        return self._call("POST", f"cancel/{job_id}")

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self.session.request(
            method,
            f"{self.api.base_url}/{ENDPOINT}/{path}",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=30,
            **options,
        )
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer
