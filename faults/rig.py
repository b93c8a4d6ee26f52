"""A worker whose every part can be made to fail, and what is left of it and of its jobs."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import psutil
import requests

from faults.checks import BrokenError, hold, picture, result_of, until
from hostile.outcome import Outcome
from local import worker
from local.fault_proxy import Fault, FaultProxy
from local.faulty_orders import Order
from local.runpod_api import FINAL
from local.stack import Stack
from local.web import Reply

RESULTS = "qwen-image-edit/results/"
STEPS = 4
SMALL = {"num_inference_steps": STEPS, "width": 256, "height": 256, "true_cfg_scale": 1.0}
END_S = 5.0  # for a process that must go, and for those below it


class Rig(Stack):
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
        return bool(self.api.jobs[job_id].answers[-1].get("stopPod"))

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

    def freeze_decoders(self, number: signal.Signals = signal.SIGSTOP) -> None:
        """Stop the processes that decode, or send them another signal."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("decoder_process" in word for word in process.cmdline()):
                    process.send_signal(number)

    def clear(self) -> None:
        """No more faults."""
        self.order(None)
        self.proxy.fault = None
        self._open.set()

    # --- the process

    def family(self) -> list[psutil.Process]:
        """The processes below the worker."""
        if self.process is None:
            return []
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    @property
    def has_ended(self) -> bool:
        """Whether the worker is gone."""
        return self.process is None or self.process.poll() is not None

    def kill(self, *, group: bool = False) -> list[str]:
        """Kill -9 the worker, or all that is in its group; what is left of it."""
        if self.process is None:
            return []
        family = self.family()
        os.killpg(self.process.pid, signal.SIGKILL) if group else self.process.kill()
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)  # those that this harness has stopped
        self.process.wait()
        return self._left(self.process, family)

    def ends(self) -> tuple[int, list[str]]:
        """Wait until the worker ends by itself: its exit code, and what is left of it.

        Raises:
            BrokenError: it goes on.
        """
        process, family = self.process, self.family()
        if process is None:
            raise BrokenError("there is no worker")
        try:
            code = process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise BrokenError("the process goes on") from None
        return code, self._left(process, family)

    def _left(self, process: subprocess.Popen[str], family: list[psutil.Process]) -> list[str]:
        end = time.monotonic() + END_S
        while (alive := [one for one in family if _lives(one)]) and time.monotonic() < end:
            time.sleep(0.05)
        names = ["a decoder" if "decoder_process" in " ".join(_words(one)) else "the heartbeat" for one in alive]
        worker.end_group(process)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process = None
        return names

    def replace_worker(self) -> None:
        """As the platform does when a worker is gone: its jobs go back, and another begins."""
        self.kill()
        for job in list(self.api.jobs.values()):
            if job.status == "IN_PROGRESS":
                self.api.requeue(job.id)
        self.start_worker()

    def restart(self, **variables: str) -> None:
        """Begin anew, with other variables."""
        self.kill()
        self._more.update(variables)
        self.start_worker()

    def refuses(self, **variables: str) -> str:
        """What a worker with these variables says before it ends at once, in its one critical line.

        Raises:
            BrokenError: it starts, ends well, or says anything else.
        """
        self.kill()
        asked, log = self.api.takes, self.folder / "refused.log"
        process = worker.start({**self.environment, **variables}, log, program=self._program)
        until(lambda: process.poll() is not None or self.api.takes > asked, "it ends, or asks for a job", 60)
        self.process = process
        left = self.kill()
        self.start_worker()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        critical = [line for line in lines if line["level"] == "CRITICAL"]
        hold(process.returncode > 0, f"its exit code is {process.returncode}")
        hold(len(critical) == 1 and lines[-1] == critical[0], f"it says {[line['message'] for line in lines]}")
        hold(not left, f"left behind: {', '.join(left)}")
        said: str = critical[0]["message"]
        return said

    def abandon(self) -> None:
        """After a case in which something broke: nothing of it reaches the next."""
        self.kill()
        self.clear()
        for job in list(self.api.jobs.values()):
            if job.status not in FINAL:
                job.status = "CANCELLED"
        self.start_worker()


def _lives(process: psutil.Process) -> bool:
    """A process that is dead but not yet waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


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
