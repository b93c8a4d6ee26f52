"""Which failures of the bucket are worth another request, and when; all of them are told as StorageError."""

import contextlib
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import TypeVar
from xml.etree.ElementTree import ParseError

from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError, ReadTimeoutError

from qwen_worker.deadlines import Deadline, retry_after
from qwen_worker.errors import StorageError
from qwen_worker.storage.transport import Exchange, exchange
from qwen_worker.web.session import is_worth_another_try

MOST = 3
PAUSE_S = 0.2  # after the first request; doubled after each

#: What minio-py and urllib3 raise when the server or the network fails them.
FOREIGN = (MinioException, HTTPError, HTTPException, ParseError, OSError, ValueError)
#: S3's codes for what was damaged or too slow on the way, or comes at a bad moment, whatever their status.
BAD_LUCK = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}

Answered = TypeVar("Answered")


@dataclass(frozen=True)
class Fault:
    """Why a request came to nothing.

    Attributes:
        what: as the end of a sentence about the bucket.
        code: S3's own, or the kind of failure.
        heals: whether another request may succeed.
        wait_s: seconds that the server asks to wait.
    """

    what: str
    code: str
    heals: bool
    wait_s: float = 0.0


class Tries:
    """The requests of one operation, MOST at most.

    Args:
        verb: what they do.
        deadline: of the operation; what is left of it is shared by the requests that are left.
    """

    def __init__(self, verb: str, deadline: Deadline) -> None:
        self.attempts = 0
        self._verb = verb
        self._deadline = deadline

    @property
    def left(self) -> int:
        """How many requests may yet be made."""
        return MOST - self.attempts

    def ask(self, request: Callable[[], Answered]) -> Answered:
        """What the request comes to; it is made again after a fault that heals.

        Raises:
            StorageError: it failed for good, or too often, or the deadline passed.
        """
        while True:
            heard = None
            try:
                self._deadline.check()
                with exchange(self._deadline.left / self.left) as heard:
                    self.attempts += 1
                    answer = request()
                self._deadline.check()
                return answer
            except FOREIGN as error:
                slow = self._deadline.passed or isinstance(error, ReadTimeoutError)
                self.pause(self._slow() if slow else _fault(error, heard, self._verb), error)

    def pause(self, fault: Fault, cause: Exception | None = None) -> None:
        """Wait before the next request.

        Raises:
            StorageError: there may be none, or the deadline would pass before.
        """
        # The jitter keeps workers apart that were refused at the same moment.
        usual = PAUSE_S * 2 ** (self.attempts - 1) * random.uniform(1, 1.25)  # noqa: S311 - no secret
        seconds = max(usual, fault.wait_s)
        if not (fault.heals and self.left and seconds < self._deadline.left):
            raise StorageError(
                f"the bucket {fault.what}: {_advice(fault)}",
                retryable=fault.heals,
                attempts=self.attempts,
                code=fault.code,
            ) from cause
        # If the deadline is cut meanwhile, the next request notices.
        with contextlib.suppress(TimeoutError):
            self._deadline.wait(seconds)

    def _slow(self) -> Fault:
        seconds = round(self._deadline.seconds, 1)
        return Fault(f"took longer than {seconds:g} s to {self._verb}", TimeoutError.__name__, heals=True)


def _advice(fault: Fault) -> str:
    if not fault.heals:
        return "the worker's operator must check its S3 variables"
    return f"try again in {math.ceil(fault.wait_s)} s, as it asks" if fault.wait_s else "try again"


def _fault(error: Exception, heard: Exchange | None, verb: str) -> Fault:
    status = heard.status if heard else None
    code = _code(error)
    told = code or type(error).__name__
    shown = told if code or status in {None, HTTPStatus.OK} else f"{told} {status}"
    wait_s = retry_after((heard and heard.retry_after) or "") or 0.0
    return Fault(f"could not {verb}, {shown}", told, _heals(error, code, status), wait_s)


def _code(error: Exception) -> str:
    """S3's own, if it is one: whatever else a server puts there is not told."""
    said = str(error.code) if isinstance(error, S3Error) and error.code else ""
    return said if said in BAD_LUCK or re.fullmatch("[A-Za-z]{1,64}", said) else ""


def _heals(error: Exception, code: str, status: int | None) -> bool:
    if code in BAD_LUCK:
        return True
    if status is None:
        # ValueError: minio-py itself refuses the request as it is.
        return not isinstance(error, ValueError)
    # What breaks off, or is no answer although it says 200, was damaged on the way.
    damaged = status < 300 or isinstance(error, (HTTPError, HTTPException, OSError, ParseError, UnicodeError))
    return damaged or (is_worth_another_try(status) and status != HTTPStatus.NOT_IMPLEMENTED)
