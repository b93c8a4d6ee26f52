"""The bucket: bytes by key, with their sha256 beside them. Any S3 server; Backblaze B2 is the one in mind."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import urllib3
from minio import Minio
from minio.error import S3Error

from qwen_worker.deadlines import Deadline
from qwen_worker.errors import CacheReadFailed, StorageError
from qwen_worker.storage.transport import Pools
from qwen_worker.storage.tries import Fault, Tries
from qwen_worker.web.session import is_worth_another_try

DIGEST = "x-amz-meta-sha256"
MISSING = "NoSuchKey"
# Above it minio-py splits an upload into parts: more requests, and leftovers after a crash.
SINGLE_PART = 5 * 1024**3
CHUNK = 64 * 1024
BYTES_PER_SECOND = 4_000_000  # the least that an upload, or the download of a result, is given time for
NOT_KEPT = Fault("does not have what it acknowledged", "NotKept", heals=True)


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
        self._http = Pools(ca_file)
        # With its region the client never asks the server for it, and presigning needs no network.
        self._client = Minio(
            host,
            access_key=access_key,
            secret_key=secret_key,
            region=region,
            secure=secure,
            http_client=self._http,
        )

    def seconds(self, size: int = 0) -> float:
        """What one operation on an object of known size, in bytes, may take."""
        return self._timeout_s + size / BYTES_PER_SECOND

    def get(self, key: str, max_bytes: int, *, known: bool = False) -> Stored | None:
        """The object at `key`, or None if there is none. Of one that is longer than `max_bytes`, nothing is kept.

        `known`: that is its size, so that there is time for it.

        Raises:
            StorageError: the bucket could not be read.
        """
        with self._deadline(max_bytes if known else 0) as deadline:
            tries = Tries("read", deadline)
            found = tries.ask(lambda: self._read(key, max_bytes))
            # What was damaged on the way only is whole the next time.
            if found and not found.intact and tries.left:
                found = tries.ask(lambda: self._read(key, max_bytes))
            return found

    def stat(self, key: str) -> Stat | None:
        """What the bucket says of the object at `key`, or None if there is none.

        Raises:
            StorageError: the bucket could not be read.
        """
        with self._deadline() as deadline:
            return Tries("read", deadline).ask(lambda: self._look(key))

    def put(self, key: str, data: bytes, content_type: str, *, proven: bool = False) -> None:
        """Write the object at `key`, in one request.

        `proven`: see whether it is there as it was written, and write it again if it is not.

        Raises:
            StorageError: the bucket could not be written, or does not have what was written.
        """
        digest = hashlib.sha256(data).hexdigest()
        with self._deadline(len(data)) as deadline:
            tries = Tries("write", deadline)
            tries.ask(lambda: self._write(key, data, content_type, digest))
            while proven:
                found = Tries("read", deadline).ask(lambda: self._look(key))
                if found and (found.size, found.sha256) == (len(data), digest):
                    return
                tries.pause(NOT_KEPT)
                tries.ask(lambda: self._write(key, data, content_type, digest))

    def delete(self, key: str) -> None:
        """Take the object at `key` away, if there is one. On Backblaze B2 that needs no right beyond writing.

        Raises:
            StorageError: the bucket could not be written, or this key may not delete.
        """
        with self._deadline() as deadline:
            Tries("write", deadline).ask(lambda: self._client.remove_object(self.name, self.prefix + key))

    def presign(self, key: str) -> tuple[str, str]:
        """A link that reads the object at `key` for `expires_s` seconds, and when that ends (ISO 8601, UTC).

        The server is not asked.
        """
        now, life = datetime.now(UTC).replace(microsecond=0), timedelta(seconds=self.expires_s)
        url = self._client.presigned_get_object(self.name, self.prefix + key, expires=life, request_date=now)
        return url, (now + life).isoformat().replace("+00:00", "Z")

    def follow(self, link: str, max_bytes: int) -> tuple[int, bytes]:
        """What a link of `presign` answers to whoever has it: the status, and at most so many bytes.

        Raises:
            StorageError: it does not answer.
        """

        def opened() -> tuple[int, bytes]:
            response = self._http.urlopen("GET", link, preload_content=False)
            try:
                if is_worth_another_try(response.status):
                    raise urllib3.exceptions.HTTPError(f"status {response.status}")
                return response.status, response.read(max_bytes)
            finally:
                response.close()

        with self._deadline() as deadline:
            return Tries("read", deadline).ask(opened)

    def _deadline(self, size: int = 0) -> Deadline:
        return Deadline(self.seconds(size))

    def _read(self, key: str, max_bytes: int) -> Stored | None:
        try:
            response = self._client.get_object(self.name, self.prefix + key)
        except S3Error as error:
            if error.code == MISSING:
                return None
            raise
        try:
            data = _body(response, max_bytes)
        finally:
            response.close()
            response.release_conn()
        digest = response.headers.get(DIGEST)
        return Stored(data or b"", intact=data is not None and digest == hashlib.sha256(data).hexdigest())

    def _look(self, key: str) -> Stat | None:
        try:
            found = self._client.stat_object(self.name, self.prefix + key)
        except S3Error as error:
            if error.code == MISSING:
                return None
            raise
        return Stat(found.size or 0, (found.metadata or {}).get(DIGEST), found.content_type or "")

    def _write(self, key: str, data: bytes, content_type: str, digest: str) -> None:
        self._client.put_object(
            self.name,
            self.prefix + key,
            io.BytesIO(data),
            len(data),
            content_type=content_type,
            metadata={DIGEST: digest},
            part_size=SINGLE_PART,
        )


def _body(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes | None:
    """All of it, or None if it is longer than that."""
    body = io.BytesIO()
    if (response.length_remaining or 0) > max_bytes:
        return None
    for chunk in response.stream(CHUNK, decode_content=False):
        body.write(chunk)
        if body.tell() > max_bytes:
            return None
    return body.getvalue()


@contextmanager
def reading_cache() -> Iterator[None]:
    """What goes wrong inside is told as the failure to read what the bucket keeps: no model time was spent."""
    try:
        yield
    except StorageError as error:
        raise CacheReadFailed(
            error.message, retryable=error.retryable, attempts=error.attempts, **error.details
        ) from error
