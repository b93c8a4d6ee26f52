"""RunPod's door: `python handler.py` takes jobs, `--test_input '{...}'` does one, `--rp_serve_api` serves HTTP.

Importing this module starts nothing and loads no model.
"""

import contextlib
import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

# The SDK reads it when imported; its own default prints whole answers.
os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")

from qwen_worker import start
from qwen_worker.imports import importing, quick_cpuinfo

if __name__ == "__main__":
    # The disk is the slowest part of a start: it reads while everything below is imported.
    start.begin()

with importing(), quick_cpuinfo():
    import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_scale
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.rp_logger import LOG_LEVELS, RunPodLogger

from qwen_worker import fitness, memory
from qwen_worker import log as job_log
from qwen_worker.build import build, build_bucket
from qwen_worker.job import Answer
from qwen_worker.loop import Loop
from qwen_worker.orphans import die_with_us
from qwen_worker.progress import Progress
from qwen_worker.scrub import without
from qwen_worker.settings import Settings, load_settings
from qwen_worker.stopwatch import nobody

log = logging.getLogger("qwen_worker.handler")


@functools.cache
def settings() -> Settings:
    """This process's settings."""
    return load_settings()


@functools.cache
def worker() -> Any:
    """This process's one worker: model in memory, clients open."""
    return build(settings())


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Answer one job; never raises. Where there is a job API, its /status tells the progress meanwhile."""
    if "RUNPOD_WEBHOOK_POST_OUTPUT" not in os.environ:
        return await _answered(job)
    async with Progress(functools.partial(_post, job)) as tell:
        return await _answered(job, tell)


async def _answered(job: dict[str, Any], tell: Callable[[dict[str, Any]], None] = nobody) -> dict[str, Any]:
    answer: Answer = await worker().answer(job, tell)
    return answer.on_the_wire()


async def _post(job: dict[str, Any], news: dict[str, Any]) -> None:
    """What `runpod.serverless.progress_update` does in a thread of its own, which is why its updates come unordered."""
    with contextlib.suppress(OSError, TimeoutError):
        async with AsyncClientSession() as session:
            await send_result(session, {"status": "IN_PROGRESS", "output": news}, job)


async def _shown(job: dict[str, Any]) -> dict[str, Any]:
    """As `handler`, for a person who waits at a terminal: the log cuts what RunPod's SDK says of answers."""
    answer: Answer = await worker().answer(job)
    print(json.dumps(answer.body), file=sys.__stdout__)
    return answer.on_the_wire()


def _log(logger: Any, message: Any, message_level: str = "INFO", job_id: str | None = None) -> None:
    """RunPodLogger.log into our stream, filtered as there."""
    least = LOG_LEVELS.index(logger.level)
    if logger.level != "NOTSET" and (message_level == "TIP" or LOG_LEVELS.index(message_level) >= least):
        job_log.from_runpod(message, message_level, job_id)


def _way() -> Literal["queue", "once", "http"]:
    """What the SDK will do: take jobs from the platform, do one (of the command line or test_input.json), or serve."""
    said, _ = runpod.serverless.parser.parse_known_args()
    if said.rp_serve_api or int(os.environ.get("RUNPOD_REALTIME_PORT", "0")):
        return "http"
    return "once" if said.test_input or "RUNPOD_WEBHOOK_GET_JOB" not in os.environ else "queue"


def _secrets() -> tuple[str, ...]:
    """What neither log nor platform may be told, as far as it is known by now."""
    known = settings().secrets if settings.cache_info().currsize else ()
    # The SDK's key stands in what aiohttp tells of a request that failed.
    return (*known, os.environ.get("RUNPOD_AI_API_KEY", ""))


def settings_hold() -> None:
    """The environment describes a worker. From here on the log knows what to keep out, and how much to say."""
    job_log.setup(settings().log_level, _secrets())


def bucket_works() -> None:
    """What it takes to deliver a result."""
    fitness.bucket_works(build_bucket(settings()))
    start.done("bucket")


def model_loads() -> None:
    """It fits, is whole, and makes a picture."""
    worker()


def _serve_metrics() -> None:
    """Give the SDK's HTTP server a page for Prometheus."""
    # What only this way of starting needs takes half a second.
    from fastapi import Response  # noqa: PLC0415
    from runpod.serverless.modules import rp_fastapi  # noqa: PLC0415

    from qwen_worker import metrics  # noqa: PLC0415

    def page() -> Response:
        text = metrics.text(worker().ledger, worker().about(), start.seconds())
        return Response(text, media_type=metrics.CONTENT_TYPE)

    class Served(rp_fastapi.WorkerAPI):  # type: ignore[misc]  # the SDK has no types
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            self.rp_app.add_api_route("/metrics", page, summary="What this worker did, as Prometheus reads it.")

    rp_fastapi.WorkerAPI = Served


def _registered(check: Callable[[], None]) -> None:
    """Have the SDK run a check before the first job; if it fails, the SDK tells the platform why and ends."""

    @functools.wraps(check)
    def told() -> None:
        try:
            check()
        except Exception as error:
            said = str(error) if isinstance(error, fitness.Unfit) else f"{type(error).__name__}: {error}"
            reason = without(said, _secrets())
            log.critical(reason, extra={"check": check.__name__})
            log.debug("where it failed", exc_info=error)
            # The SDK would say the same again.
            RunPodLogger().level = "NOTSET"
            raise fitness.Unfit(reason) from None

    runpod.serverless.register_fitness_check(told)


def main() -> None:
    """Start the worker. What stops it from working is logged as JSON, and ends in exit code 1."""
    memory.give_back()
    RunPodLogger.log = _log
    job_log.setup("INFO")
    if _way() == "queue":
        # From cheap to dear: a worker that is set up wrongly costs seconds.
        for check in (settings_hold, bucket_works, model_loads):
            _registered(check)
    else:
        settings_hold()
        model_loads()
    rp_scale.JobScaler = lambda config: Loop(config, worker().intake, worker().forecast)
    if _way() == "http":
        _serve_metrics()
    die_with_us()
    runpod.serverless.start(
        {
            "handler": _shown if _way() == "once" else handler,
            "concurrency_modifier": lambda _current: settings().slots,
        }
    )


if __name__ == "__main__":
    main()
