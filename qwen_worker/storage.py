"""The bucket: bytes by key, with their sha256 beside them. Any S3 server; Backblaze B2 is the one in mind."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from qwen_worker.deadlines import WATCHED_POOLS, Deadline, Patience
from qwen_worker.errors import StorageError

DIGEST = "sha256"  # x-amz-meta-sha256
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


class Bucket:
    """One bucket, below one prefix. Safe to share between threads."""

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
        """The object at `key` below the prefix, or None if there is none.

        Raises:
            StorageError: the bucket could not be read.
        """
        with self._operation("read"):
            try:
                response = self._client.get_object(self.name, self.prefix + key)
            except S3Error as error:
                if error.code == "NoSuchKey":
                    return None
                raise
            try:
                data = response.read()
            finally:
                response.close()
                response.release_conn()
        digest = response.headers.get(f"x-amz-meta-{DIGEST}")
        return Stored(data, intact=digest == hashlib.sha256(data).hexdigest())

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """Write the object at `key` below the prefix, in one request, and return its full key.

        Raises:
            StorageError: the bucket could not be written.
        """
        full_key = self.prefix + key
        with self._operation("write"):
            self._client.put_object(
                self.name,
                full_key,
                io.BytesIO(data),
                len(data),
                content_type=content_type,
                metadata={DIGEST: hashlib.sha256(data).hexdigest()},
                part_size=SINGLE_PART,
            )
        return full_key

    def presign(self, full_key: str) -> str:
        """A link that reads the object for `expires_s` seconds, made without asking the server."""
        return self._client.presigned_get_object(self.name, full_key, expires=timedelta(seconds=self.expires_s))

    @contextmanager
    def _operation(self, verb: str) -> Iterator[None]:
        """One operation under its deadline; what minio-py and urllib3 raise becomes StorageError."""
        with Deadline(self._timeout_s) as deadline:
            try:
                yield
                deadline.check()
            except (MinioException, urllib3.exceptions.HTTPError, ParseError, OSError, ValueError) as error:
                if deadline.passed:
                    raise StorageError(f"the bucket took longer than {deadline.seconds:g} s to {verb}") from error
                code = _code(error)
                raise StorageError(
                    f"the bucket could not {verb}: {code}", retryable=not _is_permanent(error), code=code
                ) from error


def _code(error: Exception) -> str:
    """S3's own code, or what kind of failure it was."""
    if isinstance(error, S3Error):
        return str(error.code)
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    return type(cause).__name__


def _is_permanent(error: Exception) -> bool:
    """Whether another try must fail as well: the server, or minio-py itself, refuses the request as it is."""
    if isinstance(error, S3Error):
        return 400 <= error.response.status < 500 and error.response.status not in RETRIES.status_forcelist
    return isinstance(error, ValueError)
