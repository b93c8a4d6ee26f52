"""A stand-in of RunPod's job API that the real SDK loop and the real `runpod.Endpoint` client talk to over HTTP.

The worker's half, as runpod 1.12 calls it: job-take, job-take-batch, job-done, job-stream, job-stop, ping. The
client's half, as the platform documents it: run, runsync, status, stream, cancel, health. As on the platform, a job
whose answer carries a truthy `error` is FAILED, and the jobs of a worker that is gone are handed out again. It can also
be told to behave badly: see `LocalRunPod`.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from local.aio_server import AioServer
from local.runpod_faults import Fault

ENDPOINT = "local"
KEY = "local-key"
POLL_S = 10.0  # how long a worker's question is held open
RUNSYNC_WAIT_S = 90.0  # the platform's default
FINAL = {"COMPLETED", "FAILED", "CANCELLED"}
MAX_BODY = 20 * 1024**2  # bytes, of /runsync
GONE_S = 10.0  # without a ping that names it, a job's worker is gone
LOOK_S = 0.5


@dataclass
class Job:
    """One job as the platform sees it."""

    id: str
    input: Any
    status: str = "IN_QUEUE"
    output: Any = None
    error: Any = None
    worker: str | None = None
    stream: list[Any] = field(default_factory=list)
    progress: list[tuple[float, Any]] = field(default_factory=list)  # when it came, and what it said
    late: list[Any] = field(default_factory=list)  # what was said after the end
    answers: list[Any] = field(default_factory=list)  # whatever was posted as its end, as it came
    created: float = field(default_factory=time.time)
    taken: float | None = None
    seen: float = 0.0  # when its worker last told that it has it
    stop_pod: bool = False  # whether its answer asked for a fresh worker
    finished: float | None = None

    def public(self) -> dict[str, Any]:
        """The job as a client sees it."""
        said: dict[str, Any] = {"id": self.id, "status": self.status}
        for name in ("output", "error"):
            if getattr(self, name) is not None:
                said[name] = getattr(self, name)
        if self.taken:
            said["delayTime"] = int((self.taken - self.created) * 1000)
            said["workerId"] = self.worker
        if self.taken and self.finished:
            said["executionTime"] = int((self.finished - self.taken) * 1000)
        return said


class LocalRunPod(AioServer):
    """The API in a thread of this process. Use it as a context manager.

    Attributes:
        takes: questions for jobs; `take_times` when they came, `done_times` when final answers did.
        pings: heartbeats; `last_ping` what the last one told.
        take_fault: befalls questions for jobs; `stop_fault` those for stops, `done_fault` final answers.
        deform: makes something else of the jobs that are handed out.
        body_delay_s: between the head of an answer with jobs and the jobs.
        ready: workers that `health` tells of.
        way_s: that every request of the worker's takes to get here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.pings = 0
        self.last_ping: dict[str, str] = {}  # its query
        self.takes = 0
        self.take_times: list[float] = []
        self.done_times: list[float] = []
        self.take_fault: Fault | None = None
        self.stop_fault: Fault | None = None
        self.done_fault: Fault | None = None
        self.deform: Callable[[list[dict[str, Any]]], Any] | None = None
        self.body_delay_s = 0.0
        self.way_s = 0.0
        self.ready = 1
        self._stops: list[str] = []
        self._changed = asyncio.Condition()

    @property
    def base_url(self) -> str:
        """What RUNPOD_ENDPOINT_BASE_URL is for a client."""
        return f"http://127.0.0.1:{self.port}/v2"

    def worker_environment(self, worker: str = "worker-1") -> dict[str, str]:
        """What the platform sets for a worker. The SDK fills in `$ID`, and appends to the query."""
        base = f"{self.base_url}/{ENDPOINT}"
        return {
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_POD_ID": worker,
            "RUNPOD_PING_INTERVAL": "2000",
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=local",
            # These look for a GPU, 10 % of free disk and the internet.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def requeue(self, job_id: str) -> None:
        """Hand a job out again at once, as the platform does when its worker is gone."""
        job = self.jobs[job_id]
        asyncio.run_coroutine_threadsafe(self._put_back([job]), self._loop).result(10)

    def _app(self) -> web.Application:
        @web.middleware
        async def on_its_way(request: web.Request, handler: Handler) -> web.StreamResponse:
            if "worker" in request.match_info:
                await asyncio.sleep(self.way_s)
            return await handler(request)

        app = web.Application(client_max_size=MAX_BODY, middlewares=[on_its_way])
        path = "/v2/{endpoint}"
        app.add_routes(
            [
                web.get(path + "/job-take/{worker}", self._take),
                web.get(path + "/job-take-batch/{worker}", self._take),
                web.get(path + "/job-stop/{worker}", self._stop),
                web.get(path + "/ping/{worker}", self._ping),
                web.post(path + "/job-done/{worker}/{job}", self._done),
                web.post(path + "/job-stream/{worker}/{job}", self._streamed),
                web.post(path + "/run", self._run),
                web.post(path + "/runsync", self._runsync),
                web.get(path + "/status/{job}", self._status),
                web.get(path + "/stream/{job}", self._stream),
                web.post(path + "/cancel/{job}", self._cancel),
                web.get(path + "/health", self._health),
            ]
        )
        return app

    async def _start(self) -> None:
        await super()._start()
        self._looking = asyncio.create_task(self._look())

    async def _end(self) -> None:
        await super()._end()
        held = asyncio.all_tasks() - {asyncio.current_task()}
        for question in held:
            question.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    # --- the worker's half

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self.takes += 1
        self.take_times.append(time.monotonic())
        if self.take_fault and self.take_fault.happens():
            return await self.take_fault.befall(request)
        worker = request.match_info["worker"]
        if request.query.get("job_in_progress") == "0":
            # Of whatever it had it knows nothing: this is another life.
            await self._put_back(self._of(worker))
        found = await self._until(self._queued, POLL_S)
        if not found or request.transport is None or request.transport.is_closing():
            # Nothing to do, or nobody there: a worker that was killed while it asked must not take the next one's job.
            return web.Response(status=204)
        taken = self._queued()[: int(request.query.get("batch_size", "1"))]
        for job in taken:
            job.status, job.taken, job.worker, job.seen = "IN_PROGRESS", time.time(), worker, time.monotonic()
        await self._notify()
        jobs = [{"id": job.id, "input": job.input} for job in taken]
        handed = self.deform(jobs) if self.deform else jobs if "job-take-batch" in request.path else jobs[0]
        if not self.body_delay_s:
            return web.json_response(handed)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await asyncio.sleep(self.body_delay_s)
        await response.write(json.dumps(handed).encode())
        return response

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        if self.stop_fault and self.stop_fault.happens():
            return await self.stop_fault.befall(request)
        if not await self._until(lambda: self._stops, POLL_S):
            return web.Response(status=204)
        stops, self._stops = self._stops, []
        return web.json_response({"jobsToStop": stops})

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings += 1
        self.last_ping = dict(request.query)
        for job_id in request.query.get("job_id", "").split(","):
            if job_id in self.jobs:
                self.jobs[job_id].seen = time.monotonic()
        return web.Response()

    async def _done(self, request: web.Request) -> web.StreamResponse:
        job = self._job(request)
        # The SDK says form-urlencoded and sends JSON.
        answer = await request.json()
        if answer.get("status") != "IN_PROGRESS":
            self.done_times.append(time.monotonic())
            if self.done_fault and self.done_fault.happens():
                return await self.done_fault.befall(request)
        if answer.get("status") == "IN_PROGRESS" and job.status in FINAL:
            job.late.append(answer["output"])
        elif answer.get("status") == "IN_PROGRESS":
            job.output = answer.get("output")
            job.progress.append((time.time(), answer["output"]))
        else:
            job.answers.append(answer)
            if job.status not in FINAL:
                job.output, job.error = answer.get("output"), answer.get("error")
                job.status = "FAILED" if job.error else "COMPLETED"
                job.finished = time.time()
        if answer.get("stopPod"):
            job.stop_pod = True
            await self._put_back(self._of(job.worker))
        await self._notify()
        return web.Response()

    async def _streamed(self, request: web.Request) -> web.Response:
        self._job(request).stream.append(await request.json())
        return web.Response()

    # --- the client's half

    async def _run(self, request: web.Request) -> web.Response:
        job = await self._submit(request)
        return web.json_response({"id": job.id, "status": job.status})

    async def _runsync(self, request: web.Request) -> web.Response:
        job = await self._submit(request)
        wait_s = float(request.query.get("wait", RUNSYNC_WAIT_S * 1000)) / 1000
        await self._until(lambda: job.status in FINAL, wait_s)
        return web.json_response(job.public())

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._job(request).public())

    async def _stream(self, request: web.Request) -> web.Response:
        job = self._job(request)
        chunks, job.stream = job.stream, []
        return web.json_response({"status": job.status, "stream": chunks})

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._job(request)
        if job.status == "IN_PROGRESS":
            self._stops.append(job.id)
        if job.status not in FINAL:
            job.status, job.finished = "CANCELLED", time.time()
        await self._notify()
        return web.json_response(job.public())

    async def _health(self, _request: web.Request) -> web.Response:
        states = [job.status for job in self.jobs.values()]
        counts = {
            "inQueue": states.count("IN_QUEUE"),
            "inProgress": states.count("IN_PROGRESS"),
            "completed": states.count("COMPLETED"),
            "failed": states.count("FAILED"),
        }
        return web.json_response({"jobs": counts, "workers": {"ready": self.ready}})

    # --- both

    async def _submit(self, request: web.Request) -> Job:
        if not request.headers.get("Authorization"):
            raise web.HTTPUnauthorized
        body = await request.json()
        if not isinstance(body, dict) or "input" not in body:
            raise web.HTTPBadRequest(text='{"error": "input is missing"}')
        job = Job(str(uuid.uuid4()), body["input"])
        self.jobs[job.id] = job
        await self._notify()
        return job

    def _job(self, request: web.Request) -> Job:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            raise web.HTTPNotFound
        return job

    def _queued(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.status == "IN_QUEUE"]

    def _of(self, worker: str | None) -> list[Job]:
        return [job for job in self.jobs.values() if job.status == "IN_PROGRESS" and job.worker == worker]

    async def _put_back(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.status, job.output = "IN_QUEUE", None
        await self._notify()

    async def _look(self) -> None:
        """Hand out again the jobs that no ping names any more."""
        while True:
            await asyncio.sleep(LOOK_S)
            least = time.monotonic() - GONE_S
            gone = [job for job in self.jobs.values() if job.status == "IN_PROGRESS" and job.seen < least]
            if gone:
                await self._put_back(gone)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Any, timeout_s: float) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s)
            except TimeoutError:
                return False
            return True
