"""Three edits on a live endpoint: whether each result is as it must be, how long it takes, and what it costs."""

import base64
import hashlib
import io
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import requests
from PIL import Image, ImageDraw
from urllib3.exceptions import HTTPError

from ops.rest import DeployError, Jobs, Rest
from qwen_worker import cards

EDITS = 3  # one that may wait for a worker to start, and two that find it warm
SIZE = (256, 192)
POLL_S = 0.05  # at first; an edit takes seconds, a start minutes
LONGEST_POLL_S = 2.0
LINK_S = 60
LARGEST = 50_000_000  # bytes of a result
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
PROMPTS = ("make the circle green", "make the sky orange", "make the ground white")


@dataclass(frozen=True)
class Edit:
    """One job as it went; times in milliseconds, None where RunPod does not tell.

    Attributes:
        which: of the edits.
        delay_ms: until a worker took it: of a cold one, its start.
        execution_ms: what the worker took, which is paid for.
        wall_ms: from the request until the job was seen done.
        timings_ms: the worker's own.
        worker: its id.
        gpu: its card, if REST v2 tells it.
        usd_told: what the worker says that it cost.
        usd: by execution time and the published price; a start and idle time come on top.
    """

    which: str
    delay_ms: int | None
    execution_ms: int | None
    wall_ms: int
    timings_ms: dict[str, float]
    worker: str | None
    gpu: str | None
    usd_told: float | None
    usd: float | None


def picture() -> Image.Image:
    """A sky, a circle and a ground in colours that nobody has asked for before."""
    width, height = SIZE
    sky, circle, ground = (tuple(40 + secrets.randbelow(176) for _ in range(3)) for _ in range(3))
    made = Image.new("RGB", SIZE, sky)
    draw = ImageDraw.Draw(made)
    draw.rectangle((0, height * 2 // 3, width, height), ground)
    draw.circle((width // 3, height // 3), height // 5, circle)
    return made


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def smoke(jobs: Jobs, rest: Rest | None, endpoint_id: str, timeout_s: float, tell: Callable[[str], None]) -> list[Edit]:
    """Do them.

    Args:
        jobs: of the endpoint.
        rest: tells the cards of its workers; None: nobody does.
        endpoint_id: of the endpoint.
        timeout_s: for each job, its worker's start included.
        tell: called with what is being done.

    Raises:
        DeployError: the first thing that was not as it must be.
    """
    workers = jobs.health().get("workers") or {}
    warm = sum(int(workers.get(state) or 0) for state in ("ready", "idle", "running"))
    tell("a worker is warm already: no start is seen" if warm else "no worker is up: the first edit waits for one")
    made = []
    for number in range(EDITS):
        which = "warm" if number or warm else "cold"
        made.append(_edit(jobs, rest, endpoint_id, timeout_s, which, PROMPTS[number % len(PROMPTS)]))
        tell(in_words(made[-1]))
    return made


def _edit(
    jobs: Jobs, rest: Rest | None, endpoint_id: str, timeout_s: float, which: str, prompt: str
) -> Edit:  # fmt: skip
    source = picture()
    started = time.monotonic()
    job_id = jobs.run(
        {
            "image_url": _data_url(source),
            "prompt": f"{prompt} ({secrets.token_hex(4)})",
            "seed": secrets.randbelow(2**32),
            "output_format": "png",
        }
    )
    pause = POLL_S
    while (job := jobs.status(job_id)).get("status") not in FINAL:
        if time.monotonic() - started > timeout_s:
            jobs.cancel(job_id)
            raise DeployError(
                f"job {job_id} is still {job.get('status')} after {timeout_s:g} s and was cancelled: `status` tells "
                "whether workers are throttled or unhealthy, `logs` why"
            )
        time.sleep(pause)
        pause = min(LONGEST_POLL_S, 1.5 * pause)
    wall_ms = round((time.monotonic() - started) * 1000)
    if job["status"] != "COMPLETED":
        raise DeployError(f"job {job_id} is {job['status']}: {job.get('error') or 'without a word'}; see `logs`")
    try:
        result = job["output"]["result"]
        meta, link = result["meta"], result["presigned_url"]
        sha256, timings = meta["output"]["sha256"], dict(meta["timings_ms"])
    except (KeyError, TypeError):
        raise DeployError(f"job {job_id} has no result in its output: is this endpoint this worker?") from None
    if meta.get("reused"):
        raise DeployError(f"job {job_id} reused an earlier result, although it was never asked before")
    _look(_opened(link, job_id), sha256, source, job_id)
    gpu = _gpu(rest, endpoint_id, job.get("workerId"))
    card = cards.of_driver(gpu or "")
    execution = job.get("executionTime")
    price = card.usd_per_second if card else None
    return Edit(
        which=which,
        delay_ms=job.get("delayTime"),
        execution_ms=execution,
        wall_ms=wall_ms,
        timings_ms=timings,
        worker=job.get("workerId"),
        gpu=gpu,
        usd_told=meta.get("cost_usd"),
        usd=execution / 1000 * price if price and execution is not None else None,
    )


def _opened(link: str, job_id: str) -> bytes:
    """What the link leads to, asked for by nobody in particular."""
    try:
        # A function as `auth`: else a ~/.netrc would add a header, which a signed link does not go with.
        with requests.get(link, timeout=LINK_S, auth=lambda request: request, stream=True) as answer:
            if not answer.ok:
                raise DeployError(f"the link of job {job_id} answers {answer.status_code}: are S3_ENDPOINT and the "
                                  "bucket's key right, and is this machine's clock?")  # fmt: skip
            file = answer.raw.read(LARGEST + 1, decode_content=True)
    except (requests.RequestException, HTTPError) as error:
        raise DeployError(f"the link of job {job_id} does not open ({type(error).__name__}): can this machine reach "
                          "the bucket?") from None  # fmt: skip
    return bytes(file)


def _look(file: bytes, sha256: str, source: Image.Image, job_id: str) -> None:
    """Whether it is the picture that was promised, and another one than was sent."""
    if hashlib.sha256(file).hexdigest() != sha256:
        raise DeployError(f"the link of job {job_id} leads to other bytes than the worker wrote")
    try:
        result = Image.open(io.BytesIO(file), formats=["PNG"]).convert("RGB")
    except (OSError, SyntaxError):
        raise DeployError(f"the result of job {job_id} is damaged, or not the PNG that was asked for") from None
    if result.size != SIZE:
        sizes = " x ".join(map(str, result.size)), " x ".join(map(str, SIZE))
        raise DeployError(f"the result of job {job_id} has {sizes[0]} pixels, its source {sizes[1]}")
    if result.tobytes() == source.tobytes():
        raise DeployError(f"the result of job {job_id} is its source: nothing was edited")


def _gpu(rest: Rest | None, endpoint_id: str, worker: str | None) -> str | None:
    """The card of a worker; None: nobody knows, which is no failure of the edit."""
    if rest is None or not worker:
        return None
    try:
        found = [one for one in rest.workers(endpoint_id)["workers"] if one["id"] == worker]
    except (DeployError, KeyError):
        return None
    return found[0].get("gpuTypeId") if found else None


def in_words(edit: Edit) -> str:
    """One edit, in a line."""
    stages = {name: value for name, value in edit.timings_ms.items() if value and name != "total"}
    return "; ".join(
        [
            f"{edit.which}: {_seconds(edit.wall_ms)} in all",
            f"waited {_seconds(edit.delay_ms)}",
            f"ran {_seconds(edit.execution_ms)} on {edit.gpu or 'a card that is not told'}",
            "of it " + ", ".join(f"{name} {_seconds(value)}" for name, value in stages.items()),
            f"costs {_usd(edit.usd_told)} by the worker, {_usd(edit.usd)} by its time and price",
        ]
    )


def _seconds(milliseconds: float | None) -> str:
    return "not told" if milliseconds is None else f"{milliseconds / 1000:.2f} s"


def _usd(dollars: float | None) -> str:
    return "not told" if dollars is None else f"${dollars:.5f}"


def as_json(edits: list[Edit]) -> dict[str, Any]:
    """For programs."""
    return {"edits": [asdict(edit) for edit in edits]}
