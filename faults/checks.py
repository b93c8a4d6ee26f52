"""What must hold of a job, of its answer, and of a case."""

import io
import json
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

WAIT_S = 20.0  # for what comes within a second unless something is wrong


class BrokenError(Exception):
    """What must hold did not; says what."""


def until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for something.

    Raises:
        BrokenError: it did not come.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise BrokenError(f"not after {timeout_s:g} s: {what}")
        time.sleep(0.02)


def hold(truth: bool, what: str) -> None:  # noqa: FBT001 - as assert has it
    """Must hold, or BrokenError says what did not."""
    if not truth:
        raise BrokenError(what)


def result_of(job: dict[str, Any]) -> dict[str, Any]:
    """Of a job that succeeded."""
    hold(job["status"] == "COMPLETED", f"it ended as {job['status']}: {job.get('error')}")
    result: dict[str, Any] = job["output"]["result"]
    return result


def error_of(job: dict[str, Any], kind: str) -> dict[str, Any]:
    """Of a job that failed with this type of error."""
    hold(job["status"] == "FAILED", f"it ended as {job['status']}, not with {kind}")
    error: dict[str, Any] = json.loads(job["error"])
    hold(error["type"] in kind.split("|"), f"{error['type']} instead of {kind}: {error['message']}")
    return error


def picture() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return file.getvalue()
