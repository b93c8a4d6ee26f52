"""A worker whose every part can be made to fail, and what is left of it and of its jobs."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import requests

from faults.checks import BrokenError, hold, picture, result_of, until
from faults.lives import Mortal
from hostile.outcome import Outcome
from local import worker
from local.fault_proxy import Fault, FaultProxy
from local.faulty_orders import Order
from local.runpod_api import FINAL
from local.web import Reply

RESULTS = "qwen-image-edit/results/"
STEPS = 4
SAVED = "webp"  # the format in which `local.faulty_worker` can let the encoder hang
PICTURE = rf"results/.*\.{SAVED}"
SMALL = {"num_inference_steps": STEPS, "width": 256, "height": 256, "true_cfg_scale": 1.0}


class Rig(Mortal):
    """A Stack with `local.faulty_worker` as the worker, and the fault proxy before its bucket.

    Args:
        folder: as of Stack.
        model: as of Stack.
        more: as of Stack.
    """

    def __init__(self, folder: Path, *, model: Path | None = None, more: dict[str, str] | None = None) -> None:
        self.orders = folder / "orders" / "order.json"
        self.temporary = folder / "tmp"
        super().__init__(folder, model=model, program=("-m", "local.faulty_worker"))
        self.proxy = FaultProxy(self.bucket.port)
        self._open = threading.Event()
        self._more = {
            "S3_ENDPOINT": self.proxy.host,
            "FAULTS_FILE": str(self.orders),
            "PYTHONPATH": str(worker.ROOT),
            "TMPDIR": str(self.temporary),
            "WARMUP": "0",
            # What becomes of a job beside another is looked at, however long the other takes.
            "PREFETCH": "1",
            # Each part is called by each job.
            "COMPUTED_CACHE_BYTES": "0",
            **(more or {}),
        }

    def __enter__(self) -> Self:
        for folder in (self.orders.parent, self.temporary):
            folder.mkdir(parents=True)
        self.order(None)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._open.set()
        super().__exit__()
        self.proxy.close()

    # --- the job

    def request(self, name: str, **fields: Any) -> dict[str, Any]:
        """A small one like no other, of a picture at an address of its own."""
        target = f"/{name.replace(' ', '-')}.png"
        url = self.host.put(target, picture())
        return {"image_url": url, "prompt": name, **SMALL, **fields}

    def stage(self, job_id: str) -> str | None:
        """Where a job is, as its caller is told."""
        told = self.api.jobs[job_id].progress
        return told[-1][1]["stage"] if told else None

    def reaches(self, job_id: str, stage: str) -> None:
        """Wait until a job is in a stage."""
        until(lambda: self.stage(job_id) == stage, f"the job is told to be in {stage}")

    def seconds(self, job_id: str) -> float:
        """From when a job was taken to its answer."""
        job = self.api.jobs[job_id]
        return (job.finished or 0.0) - (job.taken or 0.0)

    def refreshes(self, job_id: str) -> bool:
        """Whether a job's last answer asked for another worker."""
        return self.api.jobs[job_id].stop_pod

    def results(self) -> set[str]:
        """The keys of all results, and of what is told of them."""
        return set(self.bucket.keys(RESULTS))

    def one_result(self, job: dict[str, Any], before: set[str]) -> set[str]:
        """The keys that a job has: its picture and its manifest.

        Raises:
            BrokenError: it has others, or the picture is not what was promised.
        """
        result = result_of(job)
        key = result["object_key"]
        folder = key.rpartition("/")[0] + "/"
        found = {one for one in self.results() - before if one.startswith(folder)}
        hold(found == {key, f"{folder}manifest.json"}, f"its keys are {sorted(found)}")
        file = self.session.get(result["presigned_url"], timeout=10).content
        hold(hashlib.sha256(file).hexdigest() == result["meta"]["output"]["sha256"], "the link opens to other bytes")
        return found

    def same_undisturbed(self, request: dict[str, Any], job: dict[str, Any]) -> None:
        """The request made anew has the job's bytes."""
        meta = result_of(job)["meta"]
        again = result_of(self.run({**request, "seed": meta["seed"], "reuse": False}))["meta"]
        hold(not again["reused"], "it was not made anew")
        hold(again["output"]["sha256"] == meta["output"]["sha256"], "undisturbed it has other bytes")

    # --- the faults

    def order(self, order: Order | None) -> None:
        """Have a part of the worker fail; None: no more."""
        new = self.orders.with_suffix(".new")
        new.write_text(json.dumps(asdict(order)) if order else "")
        new.replace(self.orders)

    def calls(self, part: str = "transformer") -> int:
        """How often a part of the worker was called, in all its lives."""
        file = self.orders.with_name(f"{self.orders.name}.{part}")
        return file.stat().st_size if file.exists() else 0

    def stuck(self, request: dict[str, Any], passes: int = 0) -> str:
        """Submit a job whose edit hangs after so many passes, until the order is another; its id."""
        before = self.calls()
        self.order(Order("transformer", "hang", after_calls=passes))
        job_id = self.submit(request)
        until(lambda: self.calls() == before + 1 + passes, "the model runs")
        return job_id

    def holding(self, *, half: bool = False) -> Reply:
        """A host that says nothing more, or half of its answer, until `clear`."""

        def play(handler: BaseHTTPRequestHandler) -> None:
            data = picture()
            if half:
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data[: len(data) // 2])
            self._open.wait(60)

        self._open.clear()
        return Reply(script=play)

    def faulty(self, fault: Fault) -> None:
        """Have the bucket fail from now on."""
        self._asked = len(self.proxy.asked)
        self.proxy.fault = fault

    def meets_fault(self) -> None:
        """Wait until a request has met the bucket's fault."""
        met = sum(one.fault is not None for one in self.proxy.asked)
        until(
            lambda: sum(one.fault is not None for one in self.proxy.asked) > met, "the bucket's fault meets a request"
        )

    def clear(self) -> None:
        """No more faults."""
        self.order(None)
        self.proxy.fault = None
        self.api.take_fault = self.api.done_fault = None
        self._open.set()

    def abandon(self) -> None:
        """After a case in which something broke: nothing of it reaches the next."""
        self.kill()
        self.clear()
        for job in list(self.api.jobs.values()):
            if job.status not in FINAL:
                job.status = "CANCELLED"
        self.start_worker()


@contextmanager
def rig(**more: str) -> Iterator[Rig]:
    """One on a folder of its own, with these variables of the worker."""
    with TemporaryDirectory() as folder, Rig(Path(folder) / "rig", more=more) as running:
        yield running


def tried(on: Rig, name: str, attempt: Callable[[], float | None]) -> Outcome:
    """What a case came to; it took as long as it says itself, or else in all."""
    begin = time.perf_counter()
    through = seconds = None
    try:
        seconds = attempt()
    except (BrokenError, RuntimeError, TimeoutError, requests.RequestException) as error:
        through = str(error)[:300]
        on.abandon()
    on.clear()
    return Outcome(name, through, time.perf_counter() - begin if seconds is None else seconds)
