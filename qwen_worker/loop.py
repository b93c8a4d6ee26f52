"""The worker's life in RunPod's production loop: takes jobs, does them, and sees to it that their answers arrive.

It stands in for the JobScaler of RunPod's SDK, which asks a failing API thousands of times a second, drops an answer
that is not taken at the third try, dies of a list with something else than jobs in it, forgets the job that comes while
it ends, and ends only when the API lets go of its questions.
"""

import asyncio
import json
import logging
import os
import signal
from typing import Any, NoReturn
from urllib.parse import quote

from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import JOB_DONE_URL
from runpod.serverless.modules.rp_job import _job_get_url, _job_stop_url, run_job
from runpod.serverless.modules.worker_state import JobsProgress

from qwen_worker.forecast import Forecast
from qwen_worker.intake import Intake
from qwen_worker.job_api import NotDeliveredError, Patience, Question, deliver, first

log = logging.getLogger(__name__)

SAID_S = 5.0  # for the answer of a job that has shown the process to be sick
MAX_ID = 1000  # characters: with a longer one nothing can be answered
LOOK_S = 0.1  # between two looks at the forecast
END_S = 0.3  # for what goes on behind answered jobs, as a source that is being cached


class Loop:
    """Does jobs until SIGTERM or SIGINT, and then those that it has.

    Args:
        config: as runpod.serverless.start got it: `handler` and `concurrency_modifier`.
        intake: while it is closed, no job is taken.
        forecast: how many jobs may be taken beside those that are there.
        patience: with the job API.
    """

    def __init__(
        self,
        config: dict[str, Any],
        intake: Intake,
        forecast: Forecast,
        patience: Patience | None = None,
    ) -> None:
        self._handler = config["handler"]
        self._slots: int = config["concurrency_modifier"](1)
        self._intake = intake
        self._patience = patience or Patience()
        self._forecast = forecast
        self._running: dict[asyncio.Task[None], str] = {}
        self._ending = asyncio.Event()
        self._answered: set[asyncio.Task[None]] = set()
        self._is_sick = False  # this process: what it would still answer is not to be trusted

    def start(self) -> None:
        """As JobScaler.start, but that it ends the process itself, with every job answered."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._ending.set))
        async with AsyncClientSession() as session:
            watches = [asyncio.create_task(self._heed_stops(session)), asyncio.create_task(self._heed_sickness())]
            await self._take_jobs(session)
            while self._running:
                await asyncio.wait(self._running)
            for watch in watches:
                watch.cancel()
        if self._is_sick:
            _end(1)
        await asyncio.sleep(END_S)
        # Not by the interpreter's own way out: threads of jobs that were stopped may hang for ever.
        _end(0)

    async def _take_jobs(self, session: Any) -> None:
        question = Question("job-take", _jobs, self._called_off, self._patience)
        while await self._may_take():
            for job in await question.ask(session, _job_get_url(self._room())):
                self._begin(session, job)

    async def _may_take(self) -> bool:
        """Wait until a job may be taken; False: none may any more."""
        while not self._ending.is_set():
            if not self._intake.is_open:
                await first(self._intake.until_open(), self._ending.wait())
            elif not self._room():
                done = asyncio.wait(tuple(self._running), return_when=asyncio.FIRST_COMPLETED)
                await first(done, self._ending.wait(), asyncio.sleep(LOOK_S))
            else:
                return True
        return False

    def _room(self) -> int:
        return self._forecast.room(self._slots - len(self._running))

    async def _called_off(self) -> None:
        await first(self._intake.until_closed(), self._ending.wait())

    def _begin(self, session: Any, job: dict[str, Any]) -> None:
        if self._is_sick:
            return
        task = asyncio.create_task(self._do(session, job))
        self._running[task] = job["id"]
        JobsProgress().add(job["id"])
        self._forecast.take(job["id"])
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Also of a job that was stopped before it began."""
        job_id = self._running.pop(task)
        self._answered.discard(task)
        if job_id not in self._running.values():
            JobsProgress().remove(job_id)
            self._forecast.drop(job_id)
        if not task.cancelled() and (error := task.exception()):
            log.error("the answer is lost", exc_info=error, extra={"job_id": job_id})

    async def _do(self, session: Any, job: dict[str, Any]) -> None:
        answer = await self._answer(job)
        # The GPU is done with it, however long its answer waits to be taken.
        self._forecast.drop(job["id"])
        if self._is_sick:
            return
        if task := asyncio.current_task():
            self._answered.add(task)
        if answer.get("stopPod"):
            self._give_up()
        await self._deliver(session, job["id"], answer)

    async def _heed_sickness(self) -> None:
        await self._intake.until_given_up()
        self._ending.set()
        # The job that found out says so itself, unless it was stopped.
        await asyncio.sleep(SAID_S)
        self._give_up()

    def _give_up(self) -> None:
        """Do no more. RunPod gives the jobs of a worker that is gone to another one."""
        if self._is_sick:
            return
        self._is_sick = True
        self._ending.set()
        log.critical("this process cannot be trusted with another job and ends")
        for task in self._running:
            if task not in self._answered:
                task.cancel()

    async def _answer(self, job: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await run_job(self._handler, job)
        except (Exception, SystemExit):
            # A job ends neither its worker nor the jobs beside it.
            log.exception("the job has no answer", extra={"job_id": job["id"]})
            return _internal_error()
        return answer

    async def _deliver(self, session: Any, job_id: str, answer: dict[str, Any]) -> None:
        try:
            body = json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            log.exception("the answer is no JSON", extra={"job_id": job_id})
            stops = {"stopPod": True} if answer.get("stopPod") else {}
            body = json.dumps({**_internal_error(), **stops}).encode()
        name = quote(job_id, safe="", errors="replace")
        headers = {
            "charset": "utf-8",
            "Content-Type": "application/x-www-form-urlencoded",  # as the SDK says of its JSON
            "X-Request-ID": name,
        }
        url = JOB_DONE_URL.replace("$ID", name) + "&isStream=false"
        try:
            tries = await deliver(session, url, body, headers, self._patience)
            log.info("answer delivered", extra={"job_id": job_id, "attempts": tries})
        except NotDeliveredError as error:
            log.error("answer not delivered: %s", error, extra={"job_id": job_id})  # noqa: TRY400

    async def _heed_stops(self, session: Any) -> None:
        url = _job_stop_url()
        if url is None:
            log.warning("there is no stop channel: cancelled jobs are done all the same")
            return
        question = Question("job-stop", self._stopped, asyncio.Event().wait, self._patience)
        while True:
            for task in await question.ask(session, url):
                log.info("job stopped", extra={"job_id": self._running[task]})
                task.cancel()

    def _stopped(self, said: Any) -> list[asyncio.Task[None]]:
        """The tasks that a job-stop names: of those that were not stopped yet."""
        named = said.get("jobsToStop") if isinstance(said, dict) else None
        ids = named if isinstance(named, list) else []
        return [task for task, job_id in self._running.items() if job_id in ids and not task.cancelling()]


def _jobs(said: Any) -> list[dict[str, Any]]:
    """The jobs of a job-take or a job-take-batch."""
    entries = said if isinstance(said, list) else [said] if said is not None else []
    jobs = [entry for entry in entries if isinstance(entry, dict) and _is_id(entry.get("id"))]
    if len(jobs) < len(entries):
        log.error("what was no job was dropped", extra={"entries": len(entries) - len(jobs)})
    return jobs


def _is_id(said: Any) -> bool:
    return isinstance(said, str) and 0 < len(said) <= MAX_ID


def _internal_error() -> dict[str, Any]:
    message = "internal error: the worker's log says more, under this job's id"
    details = {"stage": "upload", "retryable": True, "attempts": 1}
    return {"error": json.dumps({"type": "StorageError", "message": message, "details": details})}


def _end(code: int) -> NoReturn:
    """At once: nothing that hangs is waited for."""
    logging.shutdown()
    os._exit(code)
