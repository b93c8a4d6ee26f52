"""A job dict → an answer dict: the one place where errors are caught. Never raises, but for cancellation."""

import json
import logging
import uuid
from dataclasses import dataclass
from typing import Any

from qwen_worker import log as job_log
from qwen_worker.deadlines import cut_when_cancelled
from qwen_worker.errors import BadInput, DownloadFailed, ModelError, StorageError, WorkerError
from qwen_worker.request import parse_image
from qwen_worker.schema import Rules
from qwen_worker.service import Service
from qwen_worker.stopwatch import Stopwatch

log = logging.getLogger(__name__)

#: stage → what an error is called there that nobody foresaw
UNFORESEEN: dict[str, type[WorkerError]] = {
    "validate": BadInput,
    "fetch": DownloadFailed,
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
    """Answers jobs."""

    def __init__(self, service: Service, rules: Rules) -> None:
        self._service = service
        self._rules = rules

    async def answer(self, job: dict[str, Any]) -> Answer:
        """Do one job.

        Args:
            job: as RunPod hands it over: `id` and `input`.
        """
        job_id = str(job.get("id") or uuid.uuid4())
        watch = Stopwatch("validate")
        with job_log.job_context(job_id):
            try:
                answer = await self._success(job, job_id, watch)
            except WorkerError as error:
                answer = _failure(error, watch)
            except Exception as error:  # noqa: BLE001 - the one place
                unforeseen = UNFORESEEN[watch.stage]("internal error")
                unforeseen.__cause__ = error
                answer = _failure(unforeseen, watch)
        return answer

    async def _success(self, job: dict[str, Any], job_id: str, watch: Stopwatch) -> Answer:
        request = parse_image(job.get("input"), job_id=job_id, rules=self._rules)
        job_log.hide(*request.urls, request.prompt, request.negative_prompt)
        with cut_when_cancelled():
            result = await self._service.edit(request, job_id, watch)
        body = result.model_dump(mode="json", by_alias=True)
        log.info(
            "job done",
            extra={
                "status": "success",
                "object_key": result.object_key,
                "cache": result.meta.cache,
                "timings_ms": body["meta"]["timings_ms"],
            },
        )
        return Answer({"status": "success", "result": body})


def _failure(error: WorkerError, watch: Stopwatch) -> Answer:
    details = {**error.details, "stage": watch.stage, "retryable": error.retryable}
    log.warning(
        "job failed",
        extra={
            "status": "error",
            "type": error.type,
            "reason": error.message,
            "stage": watch.stage,
            "timings_ms": watch.milliseconds(),
        },
        exc_info=error if error.__cause__ else None,
    )
    body = {"status": "error", "error": {"type": error.type, "message": error.message, "details": details}}
    return Answer(body, refresh_worker=error.refresh_worker)
