"""RunPod's door: `python handler.py` takes jobs, `--test_input '{...}'` does one, `--rp_serve_api` serves HTTP.

Importing this module starts nothing and loads no model.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

# The SDK reads it when imported; its own default prints whole answers.
os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")

import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_scale
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.rp_logger import LOG_LEVELS, RunPodLogger

from qwen_worker import log as job_log
from qwen_worker.job import Answer
from qwen_worker.loop import Loop
from qwen_worker.orphans import die_with_us
from qwen_worker.progress import Progress
from qwen_worker.settings import Settings, load_settings
from qwen_worker.stopwatch import nobody


@functools.cache
def settings() -> Settings:
    """This process's settings."""
    return load_settings()


@functools.cache
def worker() -> Any:
    """This process's one worker: model in memory, clients open."""
    from qwen_worker.build import build  # noqa: PLC0415 - torch and diffusers, which importing must not load

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


def _runs_one_job() -> bool:
    """Whether the SDK will do one job from the command line or from test_input.json, and end."""
    given = any(argument.startswith("--test_input") for argument in sys.argv)
    serves = "--rp_serve_api" in sys.argv or "RUNPOD_REALTIME_PORT" in os.environ
    return (given or "RUNPOD_WEBHOOK_GET_JOB" not in os.environ) and not serves


def main() -> None:
    """Start the worker. What stops it from working is raised here, logged as JSON, and ends in exit code 1."""
    RunPodLogger.log = _log
    job_log.setup("INFO")
    # The SDK's key stands in what aiohttp tells of a request that failed.
    job_log.setup(settings().log_level, (*settings().secrets, os.environ.get("RUNPOD_AI_API_KEY", "")))
    worker()
    rp_scale.JobScaler = lambda config: Loop(config, worker().intake)
    die_with_us()
    runpod.serverless.start(
        {
            "handler": _shown if _runs_one_job() else handler,
            "concurrency_modifier": lambda _current: 1 + settings().prefetch,
        }
    )


if __name__ == "__main__":
    main()
