"""The bucket, against a real S3 server and against hostile ones."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from local.bucket import LocalBucket
from qwen_worker.errors import StorageError
from qwen_worker.storage import Bucket, Stored
from tests.sources.test_cache import bucket_of


@pytest.fixture
def bucket(shared_bucket: LocalBucket) -> Bucket:
    """The worker's bucket."""
    return bucket_of(shared_bucket)


@pytest.mark.parametrize("size", [0, 1, 6 * 1024**2])
def test_what_was_put_can_be_got(bucket: Bucket, size: int) -> None:
    """Six megabytes would be several parts by the client's default."""
    key = bucket.put(f"size/{size}", b"x" * size, "image/png")

    assert key == f"test/size/{size}"
    assert bucket.get(f"size/{size}") == Stored(b"x" * size, "image/png", intact=True)


def test_a_missing_object_is_none(bucket: Bucket) -> None:
    """Not an error."""
    assert bucket.get("nothing/here") is None


def test_a_link_opens_and_is_bound_to_its_signature(bucket: Bucket) -> None:
    """Tampered, it does not open."""
    link = bucket.presign(bucket.put("a", b"picture", "image/webp"))
    answer = requests.get(link, timeout=5)
    tampered = requests.get(link[:-1] + ("0" if link[-1] != "0" else "1"), timeout=5)

    assert (answer.content, answer.headers["Content-Type"]) == (b"picture", "image/webp")
    assert tampered.status_code == 403


def test_a_link_is_made_without_the_server(own_bucket: LocalBucket) -> None:
    """The region is known, so nothing is asked."""
    bucket = bucket_of(own_bucket)
    own_bucket.kill()

    assert "X-Amz-Expires=60" in bucket.presign("test/a")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"secret": "wrong-secret"}, "SignatureDoesNotMatch"), ({"name": "no-such-bucket"}, "NoSuchBucket")],
)
def test_a_refusal_is_told_by_its_code(shared_bucket: LocalBucket, wrong: dict[str, Any], code: str) -> None:
    """And is not worth another try."""
    with pytest.raises(StorageError) as caught:
        bucket_of(shared_bucket, **wrong).put("a", b"x", "image/png")

    assert caught.value.details["code"] == code
    assert not caught.value.retryable


class RawServer:
    """Answers every connection with the same bytes, and counts them."""

    def __init__(self, answer: bytes, drip: bytes = b"") -> None:
        self.count = 0
        self._answer, self._drip = answer, drip
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.count += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(self._answer)
                for _ in range(200 if self._drip else 0):
                    connection.sendall(self._drip)
                    time.sleep(0.05)
            except OSError:
                pass

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def raw(request: pytest.FixtureRequest) -> Iterator[RawServer]:
    """A hostile server, from the test's parameter."""
    server = RawServer(*request.param)
    yield server
    server.close()


def bucket_at(host: str, timeout_s: float) -> Bucket:
    return Bucket(
        host, "a", "b", name="pictures", region="r", secure=False, prefix="", timeout_s=timeout_s, expires_s=60
    )


OVERLOADED = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


@pytest.mark.parametrize(
    "raw",
    [
        (OVERLOADED,),
        (b"",),
        (b"nonsense\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",),
        (b"HTTP/1.1 404 No\r\nContent-Type: text/html\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",),
        (b"HTTP/1.1 403 No\r\nContent-Type: application/xml\r\nContent-Length: 5\r\nConnection: close\r\n\r\n<bad/",),
        (b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",),
    ],
    indirect=True,
)
def test_every_fault_is_one_error(raw: RawServer) -> None:
    """minio-py alone raises five families of them."""
    with pytest.raises(StorageError):
        bucket_at(raw.host, 5).get("a")

    assert raw.count <= 4


@pytest.mark.parametrize(
    "raw",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    ],
    indirect=True,
)
def test_the_deadline_holds_whatever_the_server_drips(raw: RawServer) -> None:
    """Each read gets its byte in time; the whole does not."""
    begin = time.monotonic()
    with pytest.raises(StorageError, match=r"longer than 0\.5 s"):
        bucket_at(raw.host, 0.5).get("a")

    assert time.monotonic() - begin < 3


def test_a_kept_connection_obeys_the_deadline_too(shared_bucket: LocalBucket) -> None:
    """Of the second operation on it, not of the first."""
    quick = bucket_of(shared_bucket, timeout_s=0.5)
    quick.put("a", b"x", "image/png")
    time.sleep(0.7)

    assert quick.get("a") is not None
