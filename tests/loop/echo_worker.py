"""A worker without a model in RunPod's real loop, that does what its jobs say: see the tests beside it."""

import asyncio
import json
import logging
import os
import sys
import threading
from typing import Any

import runpod
from runpod.serverless.modules import rp_scale
from runpod.serverless.modules.rp_logger import RunPodLogger

from handler import _log
from qwen_worker import log as job_log
from qwen_worker.forecast import Forecast
from qwen_worker.intake import Intake
from qwen_worker.job_api import Patience
from qwen_worker.loop import Loop
from qwen_worker.orphans import die_with_us

log = logging.getLogger(__name__)

INTAKE = Intake()
began: list[str] = []


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Does what the job's input says, and answers with the ids of those that have begun by then."""
    began.append(job["id"])
    said = job.get("input")
    if not isinstance(said, dict):
        return {"error": "BadInput"}
    if said.get("hang"):
        # As a CUDA call that never returns.
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    if said.get("exit"):
        sys.exit(3)
    if said.get("closed"):
        async with INTAKE.closed():
            log.info("intake closed")
            await asyncio.sleep(said["closed"])
    try:
        await asyncio.sleep(said.get("sleep", 0))
    except asyncio.CancelledError:
        if not said.get("stubborn"):
            raise
    answer = {"began": list(began), **({"value": object()} if said.get("odd") else {})}
    return {**answer, "refresh_worker": True} if said.get("refresh") else answer


if __name__ == "__main__":
    RunPodLogger.log = _log
    job_log.setup("DEBUG")
    patience = Patience(**json.loads(os.environ.get("PATIENCE", "{}")))
    if "PLAIN" not in os.environ:
        forecast = Forecast(float(os.environ.get("AHEAD_S", "inf")))
        rp_scale.JobScaler = lambda config: Loop(config, INTAKE, forecast, patience)
        die_with_us()
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _current: 2})
