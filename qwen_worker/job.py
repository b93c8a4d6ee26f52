"""A job dict → an answer dict: the one place where errors are caught. Never raises, but for cancellation."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_worker import log as job_log
from qwen_worker.budget import ENDLESS, Budget, Clock
from qwen_worker.deadlines import cut_when_cancelled
from qwen_worker.errors import BadInput, CacheReadFailed, DownloadFailed, ModelError, StorageError, WorkerError
from qwen_worker.forecast import Forecast
from qwen_worker.intake import Intake
from qwen_worker.ledger import Ledger
from qwen_worker.request import parse
from qwen_worker.result import ImageResult
from qwen_worker.schema import MAX_IMAGES, MAX_URL_LENGTH, HealthInput, PresignInput, Rules, is_data
from qwen_worker.service import Service
from qwen_worker.stopwatch import Stopwatch, nobody

log = logging.getLogger(__name__)

MAX_PROMPT = 4000  # characters that are looked for in the log: of a longer prompt nothing reaches a library
URL_FIELDS = ("image_url", "mask_url", "upload_url")
PROMPT_FIELDS = ("prompt", "negative_prompt")

#: stage → what an error is called there that nobody foresaw
UNFORESEEN: dict[str, type[WorkerError]] = {
    "validate": BadInput,
    "fetch": DownloadFailed,
    "lookup": CacheReadFailed,
    "decode": BadInput,
    "queue": ModelError,
    "edit": ModelError,
    "encode": ModelError,
    "upload": StorageError,
}


@dataclass(frozen=True)
class Answer:
    """The documented answer; `refresh_worker`: RunPod should replace this process after it."""

    body: dict[str, Any]
    refresh_worker: bool = False

    def on_the_wire(self) -> dict[str, Any]:
        """The answer as RunPod's SDK must get it.

        The SDK takes `error` out of the answer, and only a string arrives there: so it is the JSON text of the
        documented object, and the job is FAILED.
        """
        wire = dict(self.body)
        if "error" in wire:
            wire["error"] = json.dumps(self.body["error"], allow_nan=False)
        if self.refresh_worker:
            wire["refresh_worker"] = True
        return wire


class Jobs:
    """Answers jobs.

    Args:
        service: does them.
        rules: of requests.
        about: what `health` tells besides uptime and counts.
        budget: the time of a job.
        intake: whether jobs are to be brought.
        forecast: told of what the jobs do.
        ledger: where they are counted.
        memory: what is in use now, in bytes, by what it is of.
    """

    def __init__(
        self,
        service: Service,
        rules: Rules,
        about: Callable[[], dict[str, Any]],
        *,
        budget: Budget = ENDLESS,
        intake: Intake | None = None,
        forecast: Forecast | None = None,
        ledger: Ledger | None = None,
        memory: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self.intake = intake or Intake()
        self.forecast = forecast or Forecast()
        self.ledger = ledger or Ledger()
        self.about = about
        self._service = service
        self._rules = rules
        self._memory = memory
        self._budget = budget
        self._begin = time.monotonic()

    async def answer(self, job: dict[str, Any], tell: Callable[[dict[str, Any]], None] = nobody) -> Answer:
        """Do one job.

        Args:
            job: as RunPod hands it over: `id` and `input`.
            tell: called with the job's stages and steps, from any thread.
        """
        job_id = _id_of(job)
        clock = Clock(self._budget)

        def told(news: dict[str, Any]) -> None:
            self.forecast.hear(job_id, news)
            tell(news)

        watch = Stopwatch("validate", told, clock)
        results: list[ImageResult] = []
        with job_log.job_context(job_id):
            try:
                async with clock:
                    clock.begin("validate")
                    answer = await self._success(job, job_id, watch, results)
            except asyncio.CancelledError:
                self._cancelled(watch)
                raise
            except WorkerError as error:
                answer = self._failed(error, watch, results)
            except Exception as error:  # noqa: BLE001 - the one place
                unforeseen = _too_late(watch.stage, clock) if clock.has_ended else _unforeseen(watch.stage)
                unforeseen.__cause__ = error
                answer = self._failed(unforeseen, watch, results)
        return answer

    async def _success(self, job: dict[str, Any], job_id: str, watch: Stopwatch, results: list[ImageResult]) -> Answer:
        said = job.get("input")
        # Before it is understood: what nobody foresaw may be raised at once.
        _hide_texts(said)
        request = parse(said, job_id=job_id, rules=self._rules)
        watch.spent.operation = request.operation
        if isinstance(request, HealthInput):
            return self._told(self._health(), watch)
        if isinstance(request, PresignInput):
            watch.begin("lookup")
            with cut_when_cancelled():
                link = await self._service.presign(request.object_key)
            return self._told(link.model_dump(mode="json"), watch)
        self.forecast.expect(job_id, request)
        with cut_when_cancelled():
            await self._service.images(request, job_id, watch, results.append)
        log.info("job done", extra=self._delivered("success", watch, results))
        return _answer(results)

    def _cancelled(self, watch: Stopwatch) -> None:
        """Nobody waits for the answer, but the GPU was paid for."""
        stage, timings_ms = watch.stage, watch.milliseconds()
        self.ledger.enter("cancelled", watch.spent, timings_ms)
        log.info("job cancelled", extra={"status": "cancelled", "stage": stage, **self._used(watch, timings_ms)})

    def _told(self, result: dict[str, Any], watch: Stopwatch) -> Answer:
        """The answer to a question about this worker, which is not counted."""
        log.info("job done", extra={"status": "success", **self._used(watch, watch.milliseconds())})
        return Answer({"status": "success", "result": result})

    def _delivered(self, outcome: str, watch: Stopwatch, results: Sequence[ImageResult]) -> dict[str, Any]:
        """Count a job with results; returns what its line tells."""
        timings_ms = watch.milliseconds()
        reused = [result.meta.reused for result in results]
        self.ledger.enter(outcome, watch.spent, timings_ms, reused)
        return {
            "status": outcome,
            "object_keys": [result.object_key for result in results],
            "cache": results[0].meta.cache,
            "reused": reused,
            **self._used(watch, timings_ms),
        }

    def _used(self, watch: Stopwatch, timings_ms: dict[str, float]) -> dict[str, Any]:
        """What a job took, as each line of one tells it."""
        gpu_s = watch.spent.gpu_s
        return {
            "operation": watch.spent.operation,
            **watch.spent.told(),
            "gpu_s": round(gpu_s, 3),
            "cost_usd": self.ledger.cost(gpu_s),
            "timings_ms": timings_ms,
            "memory": self._memory(),
        }

    def _failed(self, error: WorkerError, watch: Stopwatch, results: Sequence[ImageResult]) -> Answer:
        """The answer to a job that failed: with the results that it had by then, if there are any."""
        stage, cause = watch.stage, error if error.__cause__ else None
        why = {
            "type": error.type,
            "reason": error.message,
            "stage": stage,
            "retryable": error.retryable,
            "attempts": error.attempts,
        }
        if results:
            log.warning("job done", extra={**self._delivered("partial", watch, results), **why}, exc_info=cause)
            return replace(_answer(_warned(results, error)), refresh_worker=error.refresh_worker)
        timings_ms = watch.milliseconds()
        self.ledger.enter(error.type, watch.spent, timings_ms)
        log.warning("job failed", extra={"status": "error", **why, **self._used(watch, timings_ms)}, exc_info=cause)
        details = {**error.details, "stage": stage, "retryable": error.retryable, "attempts": error.attempts}
        body = {"status": "error", "error": {"type": error.type, "message": error.message, "details": details}}
        return Answer(body, refresh_worker=error.refresh_worker)

    def _health(self) -> dict[str, Any]:
        return {**self.about(), "uptime_s": round(time.monotonic() - self._begin, 1), **self.ledger.told()}


def _answer(results: Sequence[ImageResult]) -> Answer:
    told = [result.model_dump(mode="json", by_alias=True) for result in results]
    return Answer({"status": "success", "result": told[0], "results": told})


def _warned(results: Sequence[ImageResult], error: WorkerError) -> list[ImageResult]:
    """Results beside which there should be others."""
    warning = (
        f"only {len(results)} of the pictures were delivered, then {error.type}: {error.message}. Send the same "
        f"request with seed {results[0].meta.seed} and with reuse for the others: those that are there are reused"
    )
    return [
        one.model_copy(update={"meta": one.meta.model_copy(update={"warnings": (warning, *one.meta.warnings)})})
        for one in results
    ]


def _unforeseen(stage: str) -> WorkerError:
    return UNFORESEEN[stage]("internal error: the worker's log says more, under this job's id")


def _too_late(stage: str, clock: Clock) -> WorkerError:
    """A stage has not ended by itself: what it was waiting for is stuck, or the job waited too long for its turn."""
    return UNFORESEEN[stage](
        f"the worker gave up after {clock.seconds:.3g} s: try again", retryable=True, refresh_worker=clock.is_stuck
    )


def _id_of(job: Any) -> str:
    """The job's id as text; a new one if it has none."""
    try:
        return str((job.get("id") if isinstance(job, dict) else None) or uuid.uuid4())
    except (ValueError, RecursionError):  # of a number with too many digits, or lists in lists
        return str(uuid.uuid4())


def _hide_texts(said: Any) -> None:
    """Keep what the caller wrote out of what libraries say: prompts, and of addresses what may let one in."""
    fields = said if isinstance(said, dict) else {}
    urls = fields.get("image_urls")
    for url in [*(fields.get(name) for name in URL_FIELDS), *(urls[:MAX_IMAGES] if isinstance(urls, list) else ())]:
        if isinstance(url, str) and (is_data(url) or len(url) <= MAX_URL_LENGTH):
            job_log.hide_address(url)
    prompts = (text[:MAX_PROMPT] for name in PROMPT_FIELDS if isinstance(text := fields.get(name), str))
    # As they get to the model: background_replacement takes the last dots away too.
    job_log.hide(*(text.strip().rstrip(". ") for text in prompts))
