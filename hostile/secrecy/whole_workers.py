"""Whole workers in RunPod's production loop, and workers that must not start: what their streams tell."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile.outcome import Outcome
from hostile.parts import NO_BUCKET
from hostile.secrecy.canaries import CANARY, told_in, without_what_is_due
from hostile.secrecy.faults import TARGET, Fault, faults, posed
from local import worker
from local.stack import Stack
from local.web import ImageHost, Reply

#: of the log, and of RunPod's SDK
LEVELS = (("DEBUG", "TRACE"), ("INFO", "INFO"), ("ERROR", "ERROR"))
#: in the environment of every worker; the bucket's own keys are no canaries here
PRIVATE = {"HF_TOKEN": CANARY["hub token"], "RUNPOD_AI_API_KEY": CANARY["job api key"]}
KEYS = ("local-access-key", "local-secret-key")
SAMPLE = (
    "image_url 0", "prompt 0", "prompt 4", "wrong seed", "no such host", "refused", "status 404", "redirect 3",
    "a status line that is none", "a page", "half a picture in the request", "a good picture", "upload: 403",
)  # fmt: skip


def workers(model: Path) -> Iterator[Outcome]:
    """A sample of the faults through the real loop; then everything that was said by anybody is looked at."""
    for ours, runpods in LEVELS:
        more = {
            **PRIVATE,
            "LOG_LEVEL": ours,
            "RUNPOD_LOG_LEVEL": runpods,
            "WARMUP": "0",
            "TIMEOUT_SECONDS": "5",
            "STORAGE_TIMEOUT_SECONDS": "5",
        }
        with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), model=model, more=more) as stack:
            for number, fault in enumerate(fault for fault in faults() if fault.name in SAMPLE):
                begin = time.perf_counter()
                through = _befalls(stack, fault, f"{TARGET}{number}")
                yield Outcome(f"{fault.name}, worker at {ours}", through, time.perf_counter() - begin)
            stack.stop_worker()
            streams = stack.log.read_text() + stack.log.with_suffix(".err").read_text()
        found = [*told_in(streams), *(key for key in KEYS if key in streams)]
        found += [] if "X-Amz-Signature" not in streams else ["a signature"]
        yield Outcome(f"streams of a worker at {ours}, {runpods}", ", ".join(found) or None, 0)


def starts() -> Iterator[Outcome]:
    """Workers that end at once, and say why."""
    with ImageHost() as hub:
        hub.replies = _Refusal()
        for name, wrong in _wrong(hub.url("")).items():
            begin = time.perf_counter()
            variables = worker.environment(Path(), NO_BUCKET, _KEYS, PRIVATE, wrong)
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, str(worker.ROOT / "handler.py")]
                done = subprocess.run(
                    command, env=variables, cwd=folder, capture_output=True, text=True, timeout=120, check=False
                )
            found = told_in(done.stdout + done.stderr) or ([] if done.returncode == 1 else ["it started"])
            yield Outcome(f"start: {name}", ", ".join(found) or None, time.perf_counter() - begin)


_KEYS = {"S3_ACCESS_KEY": CANARY["access key"], "S3_SECRET_KEY": CANARY["secret key"]}


class _Refusal(dict[str, Reply]):
    """Of a Hub that repeats the token that it does not know."""

    def get(self, _target: str, _default: Any = None) -> Reply:
        headers = {"X-Error-Message": CANARY["hub token"], "X-Error-Code": "GatedRepo"}
        return Reply(CANARY["hub token"].encode(), 401, headers)


def _wrong(hub: str) -> dict[str, dict[str, str]]:
    secret = CANARY["secret key"]
    unknown = {"MODEL_ID": "someone/model", "MODEL_CLASS": "QwenImageEditPipeline", "MODEL_REVISION": "0" * 40}
    return {
        "an endpoint with a user": {"S3_ENDPOINT": f"https://{CANARY['access key']}:{secret}@host"},
        "everything": {
            "S3_BUCKET": secret,
            "PREFETCH": secret,
            "LOG_LEVEL": secret,
            "PRESIGN_EXPIRY": secret,
            "LORAS": secret,
        },
        "no model": {"MODEL_ID": "/nowhere", "MODEL_CLASS": "QwenImageEditPipeline"},
        "a token that is refused": {**unknown, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "LOG_LEVEL": "DEBUG"},
    }


def _befalls(stack: Stack, fault: Fault, target: str) -> str | None:
    """What the answer and the news of one job tell that they must not."""
    said = posed(fault, stack.host, target)
    job_id = stack.submit({name: value for name, value in said.items() if _is_json(value)})
    job = stack.finished(job_id)
    kept = stack.api.jobs[job_id]
    told = [job.get("error"), without_what_is_due(job.get("output") or {}), kept.progress, kept.late]
    return ", ".join(told_in(json.dumps(told))) or None


def _is_json(value: Any) -> bool:
    return isinstance(value, str | int | float | list | dict | None)
