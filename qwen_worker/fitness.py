"""Whether the bucket works, found out in a moment before anything dear is done. Knows no RunPod."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from qwen_worker.errors import StorageError
from qwen_worker.storage import Bucket

# Always the same few bytes at the same place: workers that start together do not disturb each other.
KEY = "health/check"
NOTHING = "health/nothing"  # is never written
PROBE = b"This worker can write, read and link.\n"
OK = 200
MAX_ANSWER = 4096  # bytes of the link's answer: a probe, or S3's error

NETWORK = "S3_ENDPOINT and S3_SECURE"
#: S3's code → what to look at
ADVICE = {
    "SignatureDoesNotMatch": "S3_SECRET_KEY, S3_ACCESS_KEY and S3_REGION",
    "InvalidAccessKeyId": "S3_ACCESS_KEY",
    "AccessDenied": "the rights of S3_ACCESS_KEY in S3_BUCKET below S3_OBJECT_PREFIX: it must read and write files",
    "AllAccessDisabled": "S3_BUCKET",
    "NoSuchBucket": "S3_BUCKET and S3_ENDPOINT",
    "AuthorizationHeaderMalformed": "S3_REGION and S3_ENDPOINT",
    "PermanentRedirect": "S3_REGION and S3_ENDPOINT",
    "RequestTimeTooSkewed": "the clock of this machine",
}


class Unfit(Exception):  # noqa: N818 - what the platform is told
    """This worker must not take a job: why, and what to look at; nothing secret."""


def bucket_works(bucket: Bucket) -> None:
    """Put a small object, get it, get what is not there, and open a link as a caller does.

    Raises:
        Unfit: one of these does not work.
    """
    with _told("put"):
        bucket.put(KEY, PROBE, "text/plain")
    with _told("get"):
        stored = bucket.get(KEY, len(PROBE))
    if stored is None or not stored.intact or stored.data != PROBE:
        raise _unfit("get", "another object came back than was put", NETWORK)
    # Some servers say so only to a key that may list. Without it each new job would fail.
    with _told("get what is missing", "listFiles: S3_ACCESS_KEY needs that right too, although nothing is listed"):
        bucket.get(NOTHING, len(PROBE))
    with _told("link"):
        status, answer = bucket.follow(bucket.presign(KEY)[0], MAX_ANSWER)
    if status != OK:
        code = _code(answer)
        raise _unfit("link", f"it answers with HTTP {status} {code}".rstrip(), ADVICE.get(code, NETWORK))
    if answer != PROBE:
        raise _unfit("link", "other bytes came than were put", NETWORK)


@contextmanager
def _told(step: str, denied: str = ADVICE["AccessDenied"]) -> Iterator[None]:
    """What fails inside is told as this step's; `denied`: what to look at if the key may not do it."""
    try:
        yield
    except StorageError as error:
        code = str(error.details.get("code", ""))
        raise _unfit(step, error.message, denied if code == "AccessDenied" else ADVICE.get(code, NETWORK)) from error


def _unfit(step: str, problem: str, variables: str) -> Unfit:
    return Unfit(f"the bucket does not work, {step}: {problem}. Look at {variables}")


def _code(answer: bytes) -> str:
    """S3's code in an error's XML, or nothing."""
    found = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", answer)
    return found[1].decode() if found else ""
