"""The bucket, against a real S3 server and against hostile ones."""

import gzip
import hashlib
import itertools
import re
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import requests

from local import children
from local.bucket import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, LocalBucket
from local.hostile_server import CHUNK, Behaviour, DeafServer, HostileServer, Peer
from local.tls import Authority, TLSForwarder
from qwen_worker.errors import StorageError
from qwen_worker.storage import Bucket, Stat, Stored
from tests.sources.test_cache import bucket_of

pytestmark = pytest.mark.slow


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
    assert caught.value.attempts == 1


class Script(HostileServer):
    """Plays each request with the next of `scenes`, the last one for ever; bytes are just sent."""

    def __init__(self, *scenes: bytes | Behaviour) -> None:
        self.heard: list[bytes] = []
        self._scenes = [scene if callable(scene) else saying(scene) for scene in scenes]
        super().__init__(self._next)
        self.host = f"127.0.0.1:{self.port}"

    def _next(self, peer: Peer) -> None:
        while True:
            peer.heard = b""
            peer.hear()
            self.heard.append(peer.heard)
            scene = self._scenes[min(len(self.heard), len(self._scenes)) - 1]
            if b"PUT " in peer.heard[:4]:
                peer.hear_body()
            scene(peer)
            if scene is self._scenes[-1]:
                return


def saying(answer: bytes, then: Behaviour = lambda _: None) -> Behaviour:
    def play(peer: Peer) -> None:
        peer.send(answer)
        then(peer)

    return play


def dripping(answer: bytes, drop: bytes = b"x") -> Behaviour:
    return saying(answer, lambda peer: peer.drip(drop, 0.05))


def bucket_at(host: str, timeout_s: float = 5) -> Bucket:
    return Bucket(
        host, "a", "b", name="pictures", region="r", secure=False, prefix="", timeout_s=timeout_s, expires_s=60
    )


def failure(server: Script, timeout_s: float = 5) -> StorageError:
    """Of a get."""
    with server, pytest.raises(StorageError) as caught:
        bucket_at(server.host, timeout_s).get("a", 10**6)
    return caught.value


def xml(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/xml", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\nConnection: close\r\n\r\n" + body).encode()


def refusal(status: str, code: str, *headers: str) -> bytes:
    return xml(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>", *headers)


def whole(data: bytes, of: bytes | None = None) -> bytes:
    """An object as it is read, with the digest of `of`; that is the data itself, if nothing else is said."""
    digest = hashlib.sha256(data if of is None else of).hexdigest()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\nx-amz-meta-sha256: {digest}\r\n\r\n"
    return head.encode() + data


def page(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>".encode()


SLOW_DOWN = refusal("503 Slow Down", "SlowDown")
GOOD = whole(b"x")
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LONG = b"HTTP/1.1 503 No\r\nContent-Type: application/xml\r\n"
CHUNKS = b"400\r\n" + b"x" * 1024 + b"\r\n"
HEADERS = b"X: y\r\n" * 1000
PACKED = gzip.compress(b"<Error><Code>AccessDenied</Code></Error>")

#: An answer to a GET, what the error is called, and whether it was worth other requests.
FAULTS: dict[str, tuple[bytes | Behaviour, str, bool]] = {
    "nothing": (b"", "ProtocolError", True),
    "a reset": (Peer.reset, "ProtocolError", True),
    "no HTTP": (b"nonsense\r\n\r\n", "ProtocolError", True),
    "a body that breaks off": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "ProtocolError", True),
    "a chunk that is none": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "ProtocolError", True),
    "half an error": (xml("403 No", "<Error><Code>Acc"), "ParseError", True),
    "an error that breaks off": (refusal("403 No", "AccessDenied")[:-5], "ProtocolError", True),
    "an error that is no text": (xml("403 No", "\x00").replace(b"\x00", b"\xff"), "UnicodeDecodeError", True),
    "an error without a code": (xml("403 No", "<Error/>"), "S3Error", False),
    "an empty error": (xml("503 Slow Down", ""), "InvalidResponseError", True),
    "a page": (page("404 No"), "InvalidResponseError", False),
    "a busy page": (page("502 Bad Gateway"), "InvalidResponseError", True),
    "a part": (b"HTTP/1.1 206 Part\r\nContent-Length: 1\r\n\r\nx", "ProtocolError", True),
    "no content": (b"HTTP/1.1 204 None\r\n\r\n", "ProtocolError", True),
    "another protocol": (b"HTTP/1.1 101 Switch\r\n\r\n", "InvalidResponseError", True),
    "headers without end": (
        saying(b"HTTP/1.1 200 OK\r\n", lambda peer: peer.flood(b"X: y\r\n" * 1000)),
        "ProtocolError",
        True,
    ),
    "an error without end": (saying(LONG + b"\r\n", lambda peer: peer.flood(b"x" * CHUNK)), "ProtocolError", True),
    "a huge error": (LONG + b"Content-Length: 99999999999999999\r\n\r\n", "ProtocolError", True),
    "an error in pieces without end": (
        saying(
            LONG + b"Transfer-Encoding: chunked\r\n\r\n",
            lambda peer: peer.drip(b"400\r\n" + b"x" * 1024 + b"\r\n", 0.001),
        ),
        "ProtocolError",
        True,
    ),
    "a packed error": (
        LONG + f"Content-Encoding: gzip\r\nContent-Length: {len(PACKED)}\r\n\r\n".encode() + PACKED,
        "UnicodeDecodeError",
        True,
    ),
    "408": (refusal("408 Late", "Late"), "Late", True),
    "425": (refusal("425 Early", "TooEarly"), "TooEarly", True),
    "429": (refusal("429 Wait", "TooManyRequests"), "TooManyRequests", True),
    "500": (refusal("500 Bad", "InternalError"), "InternalError", True),
    "a slow upload": (refusal("400 Bad", "RequestTimeout"), "RequestTimeout", True),
    "a damaged upload": (refusal("400 Bad", "XAmzContentSHA256Mismatch"), "XAmzContentSHA256Mismatch", True),
    "a bad moment": (refusal("409 Conflict", "OperationAborted"), "OperationAborted", True),
    "501": (refusal("501 No", "NotImplemented"), "NotImplemented", False),
    "a wrong header": (refusal("400 Bad", "AuthorizationHeaderMalformed"), "AuthorizationHeaderMalformed", False),
    "a wrong clock": (refusal("403 No", "RequestTimeTooSkewed"), "RequestTimeTooSkewed", False),
    "no right": (refusal("403 No", "AccessDenied"), "AccessDenied", False),
    "a wrong name": (refusal("400 Bad", "InvalidBucketName"), "InvalidBucketName", False),
    "a secret for a code": (refusal("403 No", "cAn4Ry"), "S3Error", False),
    "not modified": (b"HTTP/1.1 304 Same\r\n\r\n", "ServerError", False),
    "moved": (refusal("301 Moved", "PermanentRedirect"), "PermanentRedirect", False),
}


def test_every_fault_is_one_error_and_tried_again_if_it_may_heal() -> None:
    """minio-py alone raises five families of them. All at once, since they mostly wait."""
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        servers = {name: Script(answer) for name, (answer, _, _) in FAULTS.items()}
        errors = dict(zip(servers, pool.map(failure, servers.values(), itertools.repeat(20)), strict=True))

    assert {name: (error.details["code"], error.retryable) for name, error in errors.items()} == {
        name: (code, heals) for name, (_, code, heals) in FAULTS.items()
    }
    asked = {name: 3 if heals else 1 for name, (_, _, heals) in FAULTS.items()}
    assert {name: error.attempts for name, error in errors.items()} == asked
    assert {name: len(server.heard) for name, server in servers.items()} == asked


@pytest.mark.parametrize(
    ("status", "code", "heals"),
    [("403 No", "AccessDenied", False), ("412 No", "ServerError", False), ("206 Part", "ProtocolError", True)],
)
def test_an_odd_answer_about_an_object_is_an_error(status: str, code: str, *, heals: bool) -> None:
    """It has no body that could tell why."""
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 1\r\n\r\n".encode()
    with Script(answer) as server, pytest.raises(StorageError) as caught:
        bucket_at(server.host).stat("a")

    assert (caught.value.details["code"], caught.value.retryable) == (code, heals)


def test_an_unreachable_bucket_is_told_by_its_cause() -> None:
    """A typing error and a closed port look different."""
    with pytest.raises(StorageError, match="NewConnectionError"):
        bucket_at(f"127.0.0.1:{children.free_port()}").get("a", 1)
    with pytest.raises(StorageError, match="NameResolutionError"):
        bucket_at("bucket.invalid").get("a", 1)


def test_what_cannot_be_a_name_is_not_asked_for() -> None:
    """It is the operator's to mend."""
    with pytest.raises(StorageError) as caught:
        bucket_at(f"{'a' * 64}.example").get("a", 1)

    assert not caught.value.retryable
    assert caught.value.attempts == 1


def test_a_bucket_that_recovers_is_no_error() -> None:
    """Two refusals, then the object."""
    with Script(SLOW_DOWN, SLOW_DOWN, GOOD) as server:
        assert bucket_at(server.host).get("a", 1) == Stored(b"x", intact=True)

    assert len(server.heard) == 3


@pytest.mark.parametrize("fault", [Peer.reset, Peer.hang, SLOW_DOWN])
def test_a_write_is_made_again(fault: bytes | Behaviour) -> None:
    """Of one that hung, there is time for it."""
    with Script(fault, DONE) as server:
        bucket_at(server.host, 3).put("a", b"x", "image/png")

    assert len(server.heard) == 2


def test_a_write_that_is_refused_before_its_end_is_made_again() -> None:
    """The server does not read on."""
    numbers = itertools.count()

    def play(peer: Peer) -> None:
        peer.hear()
        if next(numbers) == 0:
            peer.send(SLOW_DOWN)
        else:
            peer.hear_body()
            peer.send(DONE)

    with HostileServer(play) as server:
        bucket_at(f"127.0.0.1:{server.port}", 3).put("a", b"x" * 8_000_000, "image/png")

    assert next(numbers) == 2


def test_several_threads_share_a_bucket() -> None:
    """Each counts its own requests, and hears its own answers."""
    asked: Counter[str] = Counter()

    def play(peer: Peer) -> None:
        peer.hear()
        asked[peer.target] += 1
        peer.send(GOOD if asked[peer.target] == 3 else SLOW_DOWN)

    with HostileServer(play) as server, ThreadPoolExecutor(8) as pool:
        bucket = bucket_at(f"127.0.0.1:{server.port}", 30)
        found = list(pool.map(lambda key: bucket.get(f"{key}", 1), range(8)))

    assert found == [Stored(b"x", intact=True)] * 8
    assert set(asked.values()) == {3}


def test_connections_that_died_in_silence_cost_one_try() -> None:
    """What is between may forget those that were left open, all of them, and tell nobody."""
    numbers, together = itertools.count(), threading.Barrier(3)

    def play(peer: Peer) -> None:
        peer.hear()
        if next(numbers) < 3:
            together.wait(10)
            peer.send(GOOD)
            peer.hang()
        peer.send(GOOD)

    with HostileServer(play) as server, ThreadPoolExecutor(3) as pool:
        bucket = bucket_at(f"127.0.0.1:{server.port}", 3)
        assert all(pool.map(lambda _: bucket.get("a", 1), range(3)))
        assert bucket.get("a", 1) == Stored(b"x", intact=True)

    assert next(numbers) == 4


@pytest.mark.parametrize("moved", ["301 X", "307 X", "308 X"])
def test_a_redirect_is_not_followed(moved: str) -> None:
    """It would carry a signed request to another host."""
    with Script(GOOD) as other:
        error = failure(Script(xml(moved, "", f"Location: http://{other.host}/")))

    assert other.heard == []
    assert not error.retryable


@pytest.mark.parametrize(
    "asked", ["3600", "99999999999999999999", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)]
)
def test_a_bucket_that_asks_for_more_time_than_there_is_is_left_alone(asked: str) -> None:
    """And the caller is told."""
    server = Script(refusal("503 Slow Down", "SlowDown", f"Retry-After: {asked}"))
    error = failure(server)

    assert re.search(r"SlowDown: try again in \d+ s, as it asks", error.message)
    assert (error.attempts, error.retryable, len(server.heard)) == (1, True, 1)


@pytest.mark.parametrize("dated", [False, True])
def test_a_bucket_is_asked_again_when_it_says(*, dated: bool) -> None:
    """In seconds, or at a date."""
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    begin = time.monotonic()
    with Script(refusal("429 Wait", "Wait", f"Retry-After: {then if dated else 2}"), GOOD) as server:
        assert bucket_at(server.host, 30).get("a", 1) == Stored(b"x", intact=True)

    assert time.monotonic() - begin > 1.5


@pytest.mark.parametrize(
    "said", ["soon", "-1", "0", "", "Mon, 99 Nov 2026 10:00:00 GMT", "Fri, 20 Nov 2020 10:00:00 -0000"]
)
def test_what_is_no_time_to_wait_is_passed_over(said: str) -> None:
    """As if the bucket had said nothing."""
    with Script(refusal("503 Slow Down", "SlowDown", f"Retry-After: {said}"), GOOD) as server:
        assert bucket_at(server.host).get("a", 1) == Stored(b"x", intact=True)


DAMAGED: dict[str, bytes | Behaviour] = {
    "a byte": whole(b"y", of=b"x"),
    "a byte too many": whole(b"xy", of=b"x"),
    "nothing": whole(b"", of=b"x"),
    "an empty answer": DONE,
    "a page": page("200 OK"),
    "no digest": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    "too long": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n", Peer.hang),
    "without end": saying(b"HTTP/1.1 200 OK\r\n\r\n", lambda peer: peer.flood(b"x" * CHUNK)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_not_the_object_is_read_once_more(name: str) -> None:
    """It may have been damaged on the way; if it is the same again, it is not taken for the object."""
    with Script(DAMAGED[name], GOOD) as healing:
        assert bucket_at(healing.host).get("a", 1) == Stored(b"x", intact=True)
    with Script(DAMAGED[name]) as damaged:
        found = bucket_at(damaged.host).get("a", 1)

    assert found is not None
    assert not found.intact
    assert len(found.data) <= 2
    assert len(damaged.heard) == 2


def test_a_bucket_that_is_silent_is_told_as_slow() -> None:
    """By the time of the operation, which is the operator's to set."""
    error = failure(Script(Peer.hang), 0.5)

    assert error.message == "the bucket took longer than 0.5 s to read: try again"
    assert error.retryable
    assert error.attempts > 1


DRIPPING = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: ",
    b"HTTP/1.1 200 OK\r\n\r\n",
    LONG + b"Content-Length: 100000\r\n\r\n",
]


@pytest.mark.parametrize("answer", DRIPPING)
@pytest.mark.parametrize("kept", [False, True])
def test_the_deadline_holds_whatever_the_server_drips(answer: bytes, *, kept: bool) -> None:
    """Each read gets its byte in time, the whole does not; on a new connection, and on one kept open from before."""
    with Script(*[GOOD] * kept, dripping(answer)) as server:
        bucket = bucket_at(server.host, 0.5)
        if kept:
            bucket.get("a", 10**6)
        begin = time.monotonic()
        with pytest.raises(StorageError, match=r"longer than 0\.5 s"):
            bucket.get("a", 10**6)

    assert time.monotonic() - begin < 5


def test_the_deadline_holds_while_an_upload_is_not_taken() -> None:
    """It does not fit into what is between."""

    def play(peer: Peer) -> None:
        peer.hear()
        peer.hold()

    begin = time.monotonic()
    with HostileServer(play) as server, pytest.raises(StorageError) as caught:
        bucket_at(f"127.0.0.1:{server.port}", 0.5).put("a", b"x" * 8_000_000, "image/png")

    assert caught.value.retryable
    assert time.monotonic() - begin < 7.5


BIG = b"x" * 12_000_000  # three seconds more
PAUSE_S = 2 / (len(BIG) / CHUNK)


def test_what_flows_is_not_cut() -> None:
    """Both ways: it takes longer than one request's share, and than an operation on a small object may."""

    def play(peer: Peer) -> None:
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        peer.hear()
        if peer.heard.startswith(b"PUT"):
            peer.drain(len(BIG) - len(peer.heard.partition(b"\r\n\r\n")[2]), PAUSE_S)
            peer.send(DONE)
            return
        answer = whole(BIG)
        for at in range(0, len(answer), CHUNK):
            peer.send(answer[at : at + CHUNK])
            time.sleep(PAUSE_S)

    with HostileServer(play) as server, ThreadPoolExecutor(2) as pool:
        bucket = bucket_at(f"127.0.0.1:{server.port}", 1)
        written = pool.submit(bucket.put, "a", BIG, "image/png")
        read = pool.submit(bucket.get, "a", len(BIG), known=True)
        written.result()
        found = read.result()

    assert found is not None
    assert found.intact


def test_the_deadline_holds_while_nobody_answers() -> None:
    """A connection that is never accepted is tried more than once, and costs no five seconds a try."""
    begin = time.monotonic()
    with DeafServer() as server, pytest.raises(StorageError) as caught:
        bucket_at(f"127.0.0.1:{server.port}", 1).get("a", 1)

    assert caught.value.retryable
    assert caught.value.attempts > 1
    assert time.monotonic() - begin < 5


def test_it_works_over_tls(shared_bucket: LocalBucket, authority: Authority) -> None:
    """On a new connection and on a kept one; with no authority but the public ones it does not."""
    with TLSForwarder(shared_bucket.port, authority.context("127.0.0.1")) as tls:
        bucket = bucket_behind(tls, str(authority.file))
        for number in range(3):
            bucket.put(f"tls/{number}", b"x" * 100_000, "image/png")
            assert bucket.get(f"tls/{number}", 10**6) == Stored(b"x" * 100_000, intact=True)

        assert bucket.presign("a")[0].startswith(f"https://127.0.0.1:{tls.port}/")
        with pytest.raises(StorageError):
            bucket_behind(tls, None).get("tls/0", 1)


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
