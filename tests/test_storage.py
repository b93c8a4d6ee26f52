"""The bucket, against a real S3 server and against hostile ones."""

import contextlib
import hashlib
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from local import children
from local.bucket import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, LocalBucket
from local.listener import Listener
from local.tls import Authority, TLSForwarder
from qwen_worker.errors import StorageError
from qwen_worker.storage import Bucket, Stat, Stored
from tests.sources.test_cache import bucket_of


@pytest.fixture
def bucket(shared_bucket: LocalBucket) -> Bucket:
    """The worker's bucket."""
    return bucket_of(shared_bucket)


@pytest.mark.parametrize("size", [0, 1, 6 * 1024**2])
def test_what_was_put_can_be_got(bucket: Bucket, shared_bucket: LocalBucket, size: int) -> None:
    """Six megabytes would be several parts by the client's default."""
    bucket.put(f"size/{size}", b"x" * size, "image/png")
    etag = shared_bucket.client.stat_object(BUCKET, f"test/size/{size}").etag

    assert etag == hashlib.md5(b"x" * size, usedforsecurity=False).hexdigest()  # of one part; else it ends in -2
    assert bucket.stat(f"size/{size}") == Stat(size, hashlib.sha256(b"x" * size).hexdigest(), "image/png")
    assert bucket.get(f"size/{size}", size, known=True) == Stored(b"x" * size, intact=True)


def test_a_missing_object_is_none(bucket: Bucket) -> None:
    """Not an error."""
    assert bucket.get("nothing/here", 1) is None
    assert bucket.stat("nothing/here") is None


def test_a_link_opens_and_is_bound_to_its_signature(bucket: Bucket) -> None:
    """Tampered, it does not open."""
    bucket.put("a", b"picture", "image/webp")
    link = bucket.presign("a")[0]
    answer = requests.get(link, timeout=5)
    tampered = requests.get(link[:-1] + ("0" if link[-1] != "0" else "1"), timeout=5)

    assert (answer.content, answer.headers["Content-Type"]) == (b"picture", "image/webp")
    assert tampered.status_code == 403


def test_a_link_is_made_without_the_server(own_bucket: LocalBucket) -> None:
    """The region is known, so nothing is asked."""
    bucket = bucket_of(own_bucket)
    own_bucket.kill()

    assert "X-Amz-Expires=60" in bucket.presign("a")[0]


def test_a_link_says_when_it_ends(bucket: Bucket) -> None:
    """In UTC, by the moment at which it was signed."""
    link, expires_at = bucket.presign("a")
    signed = datetime.strptime(link.partition("X-Amz-Date=")[2][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    assert expires_at.endswith("Z")
    assert datetime.fromisoformat(expires_at) == signed + timedelta(seconds=60)
    assert abs((datetime.now(UTC) - signed).total_seconds()) < 30


@pytest.mark.parametrize(
    ("wrong", "code"),
    # pragma: allowlist nextline secret
    [({"secret": "wrong-secret"}, "SignatureDoesNotMatch"), ({"name": "no-such-bucket"}, "NoSuchBucket")],
)
def test_a_refusal_is_told_by_its_code(shared_bucket: LocalBucket, wrong: dict[str, Any], code: str) -> None:
    """And is not worth another try."""
    with pytest.raises(StorageError) as caught:
        bucket_of(shared_bucket, **wrong).put("a", b"x", "image/png")

    assert caught.value.details["code"] == code
    assert not caught.value.retryable


class RawServer(Listener):
    """Answers each request with the next of `answers`, the last one for ever; then drips, if it has what to drip."""

    def __init__(self, *answers: bytes, drip: bytes = b"") -> None:
        self.requests = 0
        self._answers, self._drip = answers, drip
        super().__init__(self._answer)
        self.host = f"127.0.0.1:{self.port}"

    def _answer(self, connection: socket.socket) -> None:
        while connection.recv(65536):
            answer = self._answers[min(self.requests, len(self._answers) - 1)]
            self.requests += 1
            connection.sendall(answer)
            if answer is not self._answers[-1]:
                continue
            for _ in range(400 if self._drip else 0):
                connection.sendall(self._drip)
                time.sleep(0.05)
            return


@pytest.fixture
def raw(request: pytest.FixtureRequest) -> Iterator[RawServer]:
    """A hostile server, from the test's parameter."""
    server = RawServer(request.param)
    yield server
    server.close()


def bucket_at(host: str, timeout_s: float) -> Bucket:
    return Bucket(
        host, "a", "b", name="pictures", region="r", secure=False, prefix="", timeout_s=timeout_s, expires_s=60
    )


def xml(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


@pytest.mark.slow
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 404 No\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno",
        xml("403 No", b"<bad/"),
        xml("503 Slow Down", b""),
    ],
    indirect=True,
)
def test_every_fault_is_one_error(raw: RawServer) -> None:
    """minio-py alone raises five families of them."""
    with pytest.raises(StorageError):
        bucket_at(raw.host, 5).get("a", 10**6)

    assert 1 <= raw.requests <= 3


SLOW_DOWN = xml("503 Slow Down", b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        ("400 Bad", "AuthorizationHeaderMalformed", False),
        ("403 No", "RequestTimeTooSkewed", False),
        ("403 No", "AccessDenied", False),
        ("400 Bad", "InvalidBucketName", False),
        ("500 Bad", "InternalError", True),
        ("429 Wait", "TooManyRequests", True),
    ],
)
def test_what_the_server_refuses_for_good_is_not_worth_another_try(status: str, code: str, *, retryable: bool) -> None:
    """Its status says so, whatever its code is called."""
    server = RawServer(xml(status, f"<Error><Code>{code}</Code></Error>".encode()))
    with pytest.raises(StorageError) as caught:
        bucket_at(server.host, 5).get("a", 10**6)
    server.close()

    assert (caught.value.details["code"], caught.value.retryable) == (code, retryable)


@pytest.mark.slow
def test_an_unreachable_bucket_is_told_by_its_cause() -> None:
    """A typing error and a closed port look different."""
    with pytest.raises(StorageError, match="NewConnectionError"):
        bucket_at(f"127.0.0.1:{children.free_port()}", 5).get("a", 10**6)
    with pytest.raises(StorageError, match="NameResolutionError"):
        bucket_at("bucket.invalid", 5).get("a", 10**6)


@pytest.mark.slow
@pytest.mark.parametrize("raw", [SLOW_DOWN], indirect=True)
def test_an_overloaded_bucket_is_asked_three_times(raw: RawServer) -> None:
    """And then its own code is told."""
    with pytest.raises(StorageError) as caught:
        bucket_at(raw.host, 5).get("a", 10**6)

    assert (caught.value.details["code"], caught.value.retryable) == ("SlowDown", True)
    assert raw.requests == 3


def test_a_bucket_that_recovers_is_no_error() -> None:
    """Two refusals, then the object."""
    good = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\nx"
    server = RawServer(SLOW_DOWN, SLOW_DOWN, good)
    found = bucket_at(server.host, 5).get("a", 10**6)
    server.close()

    assert found is not None
    assert found.data == b"x"
    assert server.requests == 3


def test_a_redirect_is_not_followed() -> None:
    """It would carry a signed request to another host."""
    other = RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
    location = f"Location: http://{other.host}/\r\n"
    server = RawServer(f"HTTP/1.1 307 X\r\n{location}Content-Length: 0\r\n\r\n".encode())
    with pytest.raises(StorageError):
        bucket_at(server.host, 5).get("a", 10**6)
    server.close()
    other.close()

    assert other.requests == 0


DRIPPING = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: ",
    b"HTTP/1.1 200 OK\r\n\r\n",
]


@pytest.mark.slow
@pytest.mark.parametrize("answer", DRIPPING)
@pytest.mark.parametrize("kept", [False, True])
def test_the_deadline_holds_whatever_the_server_drips(answer: bytes, *, kept: bool) -> None:
    """Each read gets its byte in time, the whole does not; on a new connection, and on one kept open from before."""
    before = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"] if kept else []
    server = RawServer(*before, answer, drip=b"x")
    bucket = bucket_at(server.host, 0.5)
    for _ in before:
        bucket.get("a", 10**6)
    begin = time.monotonic()
    with pytest.raises(StorageError, match=r"longer than 0\.5 s"):
        bucket.get("a", 10**6)
    server.close()

    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("answer", "timeout_s"),
    [
        (xml("503 Slow Down", b"").replace(b"\r\n", b"\r\nRetry-After: 3600\r\n", 1), 0.5),
        (b"", 0.5),
    ],
)
def test_the_deadline_holds_over_all_tries(answer: bytes, timeout_s: float) -> None:
    """Pauses between them included, even those that the server asks for."""
    server = RawServer(answer)
    begin = time.monotonic()
    with pytest.raises(StorageError):
        bucket_at(server.host, timeout_s).get("a", 10**6)
    server.close()

    assert time.monotonic() - begin < timeout_s + 4


def test_the_deadline_holds_while_nobody_answers() -> None:
    """A connection that is never accepted costs what is left, and not five seconds a try."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as full:
        host, port = server.getsockname()
        for _ in range(4):  # beyond the backlog the kernel leaves connections hanging
            waiting = full.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex((host, port))
        begin = time.monotonic()
        with pytest.raises(StorageError, match="longer than 1 s"):
            bucket_at(f"{host}:{port}", 1).get("a", 10**6)

        assert time.monotonic() - begin < 5


@pytest.mark.slow
def test_it_works_over_tls(shared_bucket: LocalBucket, authority: Authority) -> None:
    """On a new connection and on a kept one; with no authority but the public ones it does not."""
    with TLSForwarder(shared_bucket.port, authority.context("127.0.0.1")) as tls:
        bucket = bucket_behind(tls, str(authority.file))
        for number in range(3):
            bucket.put(f"tls/{number}", b"x" * 100_000, "image/png")
            assert bucket.get(f"tls/{number}", 10**6) == Stored(b"x" * 100_000, intact=True)

        assert bucket.presign("a")[0].startswith(f"https://127.0.0.1:{tls.port}/")
        with pytest.raises(StorageError):
            bucket_behind(tls, None).get("tls/0", 10**6)


def bucket_behind(tls: TLSForwarder, ca_file: str | None) -> Bucket:
    return Bucket(
        f"127.0.0.1:{tls.port}",
        ACCESS_KEY,
        SECRET_KEY,
        name=BUCKET,
        region=REGION,
        secure=True,
        prefix="test/",
        timeout_s=5,
        expires_s=60,
        ca_file=ca_file,
    )


def test_a_kept_connection_obeys_the_deadline_too(shared_bucket: LocalBucket) -> None:
    """That of the operation that uses it, not of the one that opened it."""
    quick = bucket_of(shared_bucket, timeout_s=0.5)
    quick.put("a", b"x", "image/png")
    time.sleep(0.7)

    assert quick.get("a", 10**6) is not None
