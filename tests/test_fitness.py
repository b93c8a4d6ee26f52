"""Whether a worker can do its work is known before it takes a job: the bucket."""

import hashlib
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from local import children
from local.bucket import BUCKET, LocalBucket
from local.hostile_server import Behaviour, DeafServer, HostileServer, Peer
from qwen_worker.fitness import KEY, NOTHING, PROBE, Unfit, bucket_works
from tests.sources.test_cache import bucket_of
from tests.test_storage import bucket_at

pytestmark = pytest.mark.slow


def test_a_bucket_that_works_is_fit_and_keeps_one_small_object(own_bucket: LocalBucket) -> None:
    """However often it is looked at. Its endpoint is on the loopback address: it is the operator's."""
    for _ in range(2):
        bucket_works(bucket_of(own_bucket))

    assert own_bucket.keys() == [f"test/{KEY}"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        # pragma: allowlist nextline secret
        ({"secret": "wrong-secret"}, "put: .*SignatureDoesNotMatch.* Look at S3_SECRET_KEY"),
        ({"name": "no-such-bucket"}, "put: .*NoSuchBucket.* Look at S3_BUCKET"),
    ],
)
def test_what_the_operator_has_set_wrongly_is_named(
    shared_bucket: LocalBucket, wrong: dict[str, Any], said: str
) -> None:
    """With S3's own code; and nothing secret."""
    with pytest.raises(Unfit, match=said) as caught:
        bucket_works(bucket_of(shared_bucket, **wrong))

    assert "wrong-secret" not in str(caught.value)


def test_nobody_there_is_unfit() -> None:
    """As with a wrong endpoint."""
    with pytest.raises(Unfit, match=r"put: .* Look at S3_ENDPOINT"):
        bucket_works(bucket_at(f"127.0.0.1:{children.free_port()}", 1))


def test_a_bucket_that_never_answers_is_unfit() -> None:
    """At the deadline: that it ends at all is what counts."""
    with DeafServer() as deaf, pytest.raises(Unfit, match=r"put: "):
        bucket_works(bucket_at(f"127.0.0.1:{deaf.port}", 0.5))


def ok(body: bytes, **headers: str) -> bytes:
    """A whole answer, as S3 gives it."""
    said = {"Content-Length": str(len(body)), "Last-Modified": formatdate(usegmt=True), "ETag": '"0"', **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return f"HTTP/1.1 200 OK\r\n{lines}Connection: close\r\n\r\n".encode() + body


def refusal(code: str) -> bytes:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def stored(data: bytes) -> bytes:
    return ok(data, **{"x-amz-meta-sha256": hashlib.sha256(data).hexdigest()})


def bucket_that(
    put: bytes = ok(b""), get: bytes = stored(PROBE), link: bytes = stored(PROBE), *, drips: bool = False
) -> Behaviour:
    """A bucket that answers so; `drips`: the link, a byte at a time."""

    def behave(peer: Peer) -> None:
        peer.hear()
        if peer.heard.startswith(b"PUT"):
            peer.hear_body()
            peer.send(put)
        elif "X-Amz-Signature" not in peer.target:
            peer.send(get)
        elif drips:
            peer.send(link[:20])
            peer.drip(b"x")
        else:
            peer.send(link)

    return behave


def judge(behaviour: Behaviour, timeout_s: float = 5) -> None:
    with HostileServer(behaviour) as server:
        bucket_works(bucket_at(f"127.0.0.1:{server.port}", timeout_s))


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (lambda: bucket_that(put=refusal("AccessDenied")), "put: .*AccessDenied.* the rights of S3_ACCESS_KEY"),
        (lambda: bucket_that(get=refusal("AccessDenied")), "get: .*AccessDenied.* the rights of S3_ACCESS_KEY"),
        (lambda: bucket_that(get=refusal("NoSuchKey")), "get: another object"),
        (lambda: bucket_that(get=ok(PROBE)), "get: another object"),
        (lambda: bucket_that(get=stored(b"another")), "get: another object"),
        (lambda: bucket_that(link=refusal("AccessDenied")), "link: .*403 AccessDenied.* the rights of S3_ACCESS_KEY"),
        (lambda: bucket_that(link=ok(b"another")), "link: other bytes"),
        (lambda: bucket_that(link=ok(PROBE + bytes(10**5))), "link: other bytes"),
        (lambda: bucket_that(link=b""), "link: "),
        (lambda: bucket_that(link=b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"), "link: .*302"),
    ],
)
def test_each_step_is_told_by_its_name(behave: Callable[[], Behaviour], said: str) -> None:
    """A key that may only read, or only write; an object that is lost or another; a wrong link."""
    with pytest.raises(Unfit, match=said) as caught:
        judge(behave())

    assert "X-Amz" not in str(caught.value)


def test_a_link_that_drips_is_cut_off() -> None:
    """Each of its bytes would be in time."""
    with pytest.raises(Unfit, match="link: "):
        judge(bucket_that(drips=True), 0.5)


def test_a_busy_moment_is_not_unfit() -> None:
    """Of the link: put and get are tried again as ever."""
    behave, busy = bucket_that(), [b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]

    def play(peer: Peer) -> None:
        peer.hear()
        if "X-Amz-Signature" in peer.target and busy:
            peer.send(busy.pop())
        else:
            behave(peer)

    judge(play)
    assert not busy


def test_a_bucket_that_behaves_is_fit() -> None:
    """Else the cases above would prove nothing. Nothing is asked but to write and to read."""
    asked: list[bytes] = []
    behave = bucket_that()

    def listening(peer: Peer) -> None:
        peer.hear()
        asked.append(peer.heard.split(b"?")[0].split(b" HTTP")[0])
        behave(peer)

    judge(listening)

    path, nothing = f"/{BUCKET}/{KEY}".encode(), f"/{BUCKET}/{NOTHING}".encode()
    assert asked == [b"PUT " + path, b"GET " + path, b"GET " + nothing, b"GET " + path]
