"""The bucket: bytes by key, with their sha256 beside them. Any S3 server; Backblaze B2 is the one in mind."""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from qwen_worker.deadlines import WATCHED_POOLS, Deadline, Patience
from qwen_worker.errors import CacheReadFailed, StorageError

DIGEST = "sha256"  # x-amz-meta-sha256
MISSING = "NoSuchKey"
# Above it minio-py splits an upload into parts: more requests, none of them retried, leftovers after a crash.
SINGLE_PART = 5 * 1024**3
RETRIES = Patience(
    total=3, backoff_factor=0.2, status_forcelist=[408, 429, 500, 502, 503, 504], redirect=0, raise_on_status=False
)


@dataclass(frozen=True)
class Stored:
    """An object as it was read: `intact` says whether its bytes are those that were written."""

    data: bytes
    intact: bool


@dataclass(frozen=True)
class Stat:
    """What the bucket says of an object: its size in bytes, and the digest that was written with it, if any."""

    size: int
    sha256: str | None
    content_type: str


class Bucket:
    """One bucket, below one prefix: every key that a method takes is below it. Safe to share between threads."""

    def __init__(
        self,
        host: str,
        access_key: str,
        secret_key: str,
        *,
        name: str,
        region: str,
        secure: bool,
        prefix: str,
        timeout_s: float,
        expires_s: int,
        ca_file: str | None = None,
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.expires_s = expires_s
        self._timeout_s = timeout_s
        http = urllib3.PoolManager(
            maxsize=16,
            # Of one try; the deadline ends them all.
            timeout=urllib3.Timeout(connect=5, read=timeout_s),
            retries=RETRIES,
            ca_certs=ca_file or certifi.where(),
        )
        http.pool_classes_by_scheme = WATCHED_POOLS
        # With its region the client never asks the server for it, and presigning needs no network.
        self._client = Minio(
            host, access_key=access_key, secret_key=secret_key, region=region, secure=secure, http_client=http
        )

    def get(self, key: str) -> Stored | None:
        """The object at `key`, or None if there is none.

        Raises:
            StorageError: the bucket could not be read.
        """
        with self._operation("read"):
            try:
                response = self._client.get_object(self.name, self.prefix + key)
            except S3Error as error:
                if error.code == MISSING:
                    return None
                raise
            try:
                data = response.read()
            finally:
                response.close()
                response.release_conn()
        digest = response.headers.get(f"x-amz-meta-{DIGEST}")
        return Stored(data, intact=digest == hashlib.sha256(data).hexdigest())

    def stat(self, key: str) -> Stat | None:
        """What the bucket says of the object at `key`, or None if there is none.

        Raises:
            StorageError: the bucket could not be read.
        """
        with self._operation("read"):
            try:
                found = self._client.stat_object(self.name, self.prefix + key)
            except S3Error as error:
                if error.code == MISSING:
                    return None
                raise
        digest = (found.metadata or {}).get(f"x-amz-meta-{DIGEST}")
        return Stat(found.size or 0, digest, found.content_type or "")

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Write the object at `key`, in one request.

        Raises:
            StorageError: the bucket could not be written.
        """
        with self._operation("write"):
            self._client.put_object(
                self.name,
                self.prefix + key,
                io.BytesIO(data),
                len(data),
                content_type=content_type,
                metadata={DIGEST: hashlib.sha256(data).hexdigest()},
                part_size=SINGLE_PART,
            )

    def presign(self, key: str) -> tuple[str, str]:
        """A link that reads the object at `key` for `expires_s` seconds, and when that ends (ISO 8601, UTC).

        The server is not asked.
        """
        now, life = datetime.now(UTC).replace(microsecond=0), timedelta(seconds=self.expires_s)
        url = self._client.presigned_get_object(self.name, self.prefix + key, expires=life, request_date=now)
        return url, (now + life).isoformat().replace("+00:00", "Z")

    @contextmanager
    def _operation(self, verb: str) -> Iterator[None]:
        """One operation under its deadline; what minio-py and urllib3 raise becomes StorageError."""
        with Deadline(self._timeout_s) as deadline:
            try:
                yield
                deadline.check()
            except (MinioException, urllib3.exceptions.HTTPError, ParseError, OSError, ValueError) as error:
                if deadline.passed:
                    raise StorageError(
                        f"the bucket took longer than {deadline.seconds:g} s to {verb}: try again"
                    ) from error
                code, again = _code(error), not _is_permanent(error)
                advice = "try again" if again else "the worker's operator must check its S3 variables"
                raise StorageError(
                    f"the bucket could not {verb}, {code}: {advice}", retryable=again, code=code
                ) from error


@contextmanager
def reading_cache() -> Iterator[None]:
    """What goes wrong inside is told as the failure to read what the bucket keeps: no model time was spent."""
    try:
        yield
    except StorageError as error:
        raise CacheReadFailed(
            error.message, retryable=error.retryable, attempts=error.attempts, **error.details
        ) from error


def _code(error: Exception) -> str:
    """S3's own code, if it is one, or what kind of failure it was."""
    if isinstance(error, S3Error) and re.fullmatch("[A-Za-z]{1,64}", str(error.code)):
        return str(error.code)
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    return type(cause).__name__


def _is_permanent(error: Exception) -> bool:
    """Whether another try must fail as well: the server, or minio-py itself, refuses the request as it is."""
    if isinstance(error, S3Error):
        return 400 <= error.response.status < 500 and error.response.status not in RETRIES.status_forcelist
    return isinstance(error, ValueError)
