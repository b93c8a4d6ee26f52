"""A worker in RunPod's production loop whose bucket is behind a proxy, and jobs whose pictures are known."""

import hashlib
import io
import json
import queue
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from PIL import Image

from hostile.outcome import Outcome
from hostile.parts import tiny_folder
from local.bucket import BUCKET
from local.fault_proxy import FaultProxy
from local.stack import Stack

PREFIX = "qwen-image-edit/"
#: the least work for the model; without guidance the negative prompt says nothing, so it only makes a request another
SMALL = {"num_inference_steps": 2, "width": 256, "height": 256, "true_cfg_scale": 1.0, "seed": 1, "prompt": "a lamp"}
FORMATS = ("JPEG", "PNG", "WEBP")
ANSWER_S = 60.0  # a job that is not answered by then is lost
Case = TypeVar("Case")


@cache
def picture(kind: str) -> bytes:
    """A file of 160 x 120 pixels in one of `FORMATS`; each shows something else."""
    pixels = np.random.default_rng(FORMATS.index(kind)).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What became of a job: the body of its answer, and the seconds from its submission until then."""

    body: dict[str, Any]
    seconds: float

    @property
    def error(self) -> dict[str, Any]:
        """The documented object; empty if the job succeeded."""
        error: dict[str, Any] = self.body.get("error", {})
        return error

    @property
    def result(self) -> dict[str, Any]:
        """The first result; empty if there is none."""
        result: dict[str, Any] = self.body.get("result", {})
        return result


class Ground(Stack):
    """A stack with a proxy before its bucket. `right` has the digest of the result of each of the pictures."""

    def __init__(self, folder: Path, *, model: Path | None = None, more: dict[str, str] | None = None) -> None:
        super().__init__(folder, model=model, more=more)
        self.proxy = FaultProxy(self.bucket.port)
        self.right: dict[str, str] = {}
        self._numbers = iter(range(10**9))

    @property
    def environment(self) -> dict[str, str]:
        """Of the worker."""
        return {**super().environment, "S3_ENDPOINT": self.proxy.host}

    def __enter__(self) -> Self:
        super().__enter__()
        for kind, answer in zip(FORMATS, self.answers([self.request(kind) for kind in FORMATS]), strict=True):
            self.right[kind] = answer.result["meta"]["output"]["sha256"]
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.proxy.close()

    def request(self, kind: str, **fields: Any) -> dict[str, Any]:
        """A request of its own for a picture of that format, at an address of its own: nothing of it is kept yet."""
        url = self.host.put(f"/{next(self._numbers)}", picture(kind))
        return self.varied({"image_url": url, **SMALL, **fields})

    def varied(self, said: dict[str, Any]) -> dict[str, Any]:
        """Another request that must come to the same: its result is not kept yet, but perhaps its source."""
        return {**said, "negative_prompt": f"number {next(self._numbers)}"}

    def answer(self, said: dict[str, Any]) -> Answer:
        """Do a job. One that gets no answer has an error without a type."""
        begin = time.monotonic()
        try:
            job = self.finished(self.submit(said), ANSWER_S)
            done = job["status"] == "COMPLETED"
            body = job.get("output") or {} if done else {"error": _error_of(job.get("error"))}
        except TimeoutError as error:
            body = {"error": {"message": str(error)}}
        if self.process and self.process.poll() is not None:
            body = {"error": {"message": f"the worker died with {self.process.returncode}"}}
            self.start_worker()
        return Answer(body, time.monotonic() - begin)

    def answers(self, requests: Sequence[dict[str, Any]]) -> list[Answer]:
        """Do some jobs at the same time."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self.answer, requests))

    def wrong(self, answer: Answer, kind: str) -> str | None:
        """What is wrong with a picture that was delivered; the link is opened, so the proxy must be well."""
        if not answer.result:
            return f"{answer.error.get('type')}: {answer.error.get('message', answer.body)}"
        if (told := answer.result["meta"]["output"]["sha256"]) != self.right[kind]:
            return "another picture was delivered"
        opened = self.session.get(answer.result["presigned_url"], timeout=10)
        if not opened.ok:
            return f"the link opens with {opened.status_code}"
        return None if sha256(opened.content) == told else "the link opens to other bytes"

    @contextmanager
    def watched(self) -> Iterator[Callable[[], float]]:
        """Tells the most resident memory, in MB, that the worker had since then over what it has now."""
        process = Path(f"/proc/{self.process.pid if self.process else 'self'}")
        before = _resident(process, "VmRSS")
        (process / "clear_refs").write_text("5")  # the peak begins anew: proc(5)
        yield lambda: _resident(process, "VmHWM") - before

    def write(self, key: str, data: bytes, digest: str | None, media: str = "image/png") -> None:
        """Write an object past the worker: `digest` is what its metadata say, None: nothing."""
        metadata: dict[str, str | list[str] | tuple[str]] = {"sha256": digest} if digest is not None else {}
        self.bucket.client.put_object(BUCKET, PREFIX + key, io.BytesIO(data), len(data), media, metadata)

    def read(self, key: str) -> tuple[bytes, str | None]:
        """An object and what its metadata say of its digest, past the worker."""
        response = self.bucket.client.get_object(BUCKET, PREFIX + key)
        with response:
            return response.data, response.headers.get("x-amz-meta-sha256")


def _resident(process: Path, name: str) -> float:
    """A line of the kernel's in MB; 0 of a process that has ended."""
    found = re.search(rf"{name}:\s*(\d+) kB", (process / "status").read_text() if process.exists() else "")
    return int(found[1]) / 1024 if found else 0.0


def _error_of(said: Any) -> dict[str, Any]:
    """The documented object, out of RunPod's error string."""
    try:
        error = json.loads(said)
    except (TypeError, ValueError):
        return {"message": f"raw: {said}"}
    return error if isinstance(error, dict) else {"message": f"raw: {said}"}


def on_lanes(
    cases: Iterable[Case], attempt: Callable[[Ground, Case], Outcome], *, workers: int, each: int = 1
) -> Iterator[Outcome]:
    """Every case, on some workers at a time: between two jobs RunPod's loop pauses for longer than these jobs take.

    Args:
        cases: what to attempt.
        attempt: one of them.
        workers: how many.
        each: cases that one of them has at a time.
    """
    with tiny_folder() as model, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        free: queue.SimpleQueue[Ground] = queue.SimpleQueue()
        for number in range(workers):
            more = {"PREFETCH": str(max(1, each - 1))}
            ground = stack.enter_context(Ground(Path(folder) / str(number), model=model, more=more))
            for _ in range(each):
                free.put(ground)

        def one(case: Case) -> Outcome:
            ground = free.get()
            try:
                return attempt(ground, case)
            finally:
                free.put(ground)

        with ThreadPoolExecutor(workers * each) as pool:
            yield from pool.map(one, cases)
