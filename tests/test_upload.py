"""PUT to a caller's own link, against real servers: a web host, an S3 server, and hostile ones."""

import socket
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path

import pytest

from local.bucket import BUCKET, LocalBucket
from local.tls import Authority, TLSForwarder
from local.web import ImageHost, Reply
from qwen_worker.errors import BadInput, StorageError
from qwen_worker.upload import Uploader
from qwen_worker.web.dial import CONNECT_TIMEOUT_S

LOOPBACK = (ip_network("127.0.0.0/8"),)
ANY_PORT = (range(1, 65536),)
PICTURE = bytes(range(256)) * 100
# More than the buffers between two sockets hold.
LARGE = b"x" * 32 * 1024**2
INSIDE = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "localhost.", "169.254.169.254"]


def uploader(timeout_s: float = 5.0) -> Uploader:
    return Uploader(timeout_s=timeout_s, private=LOOPBACK, ports=ANY_PORT)


def failure(url: str, to: Uploader | None = None, data: bytes = PICTURE) -> StorageError:
    """How a PUT fails; wherever it does, the link stays out of what the caller is told."""
    with pytest.raises(StorageError) as caught:
        (to or uploader()).put(url, data, "image/png")

    secret = url.partition("?")[2] or url.partition("://")[2]
    assert secret not in f"{caught.value} {caught.value.details}"
    assert str(caught.value).startswith("upload_url: ")
    assert caught.value.details["target"] == "upload_url"
    return caught.value


def writes(head: bytes, drop: bytes = b"") -> Reply:
    """Answers without reading the body; then drips for ever, if it has what to drip, and closes else."""

    def script(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        while drop:
            handler.wfile.write(drop)
            time.sleep(0.05)

    return Reply(script=script)


@pytest.mark.parametrize("data", [PICTURE, b""])
def test_the_bytes_arrive_with_their_type_and_length(host: ImageHost, data: bytes) -> None:
    """As they are, to the byte."""
    uploader().put(host.url("/a"), data, "image/webp")

    assert host.uploads == {"/a": data}
    assert host.headers[0]["Content-Type"] == "image/webp"
    assert host.headers[0]["Content-Length"] == str(len(data))
    assert host.headers[0]["Transfer-Encoding"] is None


@pytest.mark.parametrize("target", ["/a%7eb%2Fc/../d//e?X-Amz-Signature=a%2fB%2F&x=1+2&y=%20", "/?", "/a;b=c/(d)'e'"])
def test_the_target_is_sent_byte_for_byte(host: ImageHost, target: str) -> None:
    """A signed link is valid in one spelling only."""
    uploader().put(host.url(target), PICTURE, "image/png")

    assert host.requests == [target]


@pytest.mark.parametrize("status", [200, 201, 204])
def test_every_status_of_success_is_success(host: ImageHost, status: int) -> None:
    """Servers differ in what they answer a PUT."""
    host.replies["/a"] = Reply(status=status)
    uploader().put(host.url("/a"), PICTURE, "image/png")

    assert host.uploads == {"/a": PICTURE}


def link_to(bucket: LocalBucket, key: str) -> str:
    return bucket.client.presigned_put_object(BUCKET, key, expires=timedelta(minutes=1))


@pytest.mark.parametrize("key", ["upload/a.png", "upload/ü b+c~(1)/d.png"])
def test_a_presigned_link_puts_the_object_there(shared_bucket: LocalBucket, key: str) -> None:
    """Of a real S3 server, which checks the signature."""
    uploader().put(link_to(shared_bucket, key), PICTURE, "image/webp")

    kept = shared_bucket.client.get_object(BUCKET, key)
    assert (kept.read(), kept.headers["Content-Type"]) == (PICTURE, "image/webp")
    kept.close()


def test_a_tampered_link_is_refused(shared_bucket: LocalBucket) -> None:
    """The caller learns the status and what to do; another try would not help."""
    link = link_to(shared_bucket, "upload/tampered.png")
    error = failure(link[:-1] + ("0" if link[-1] != "0" else "1"))

    assert error.message == "upload_url: its host answered 403: sign a new link for PUT"
    assert error.details == {"target": "upload_url", "status": 403}
    assert not error.retryable
    assert shared_bucket.keys("upload/tampered.png") == []


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(400, False), (401, False), (404, False), (413, False), (408, True), (425, True), (429, True), (500, True)],
)
def test_another_status_fails(host: ImageHost, status: int, retryable: bool) -> None:
    """Told with the status, and whether it is worth another try; there is none here."""
    host.replies["/a?signature=1"] = Reply(b"sorry", status, headers={"Retry-After": "0"})
    error = failure(host.url("/a?signature=1"))

    assert error.details["status"] == status
    assert error.retryable is retryable
    assert len(host.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused(host: ImageHost, status: int) -> None:
    """Not followed: a picture goes only where the caller said."""
    host.replies["/a"] = Reply(status=status, headers={"Location": host.url("/b")})
    error = failure(host.url("/a"))

    assert "redirects are not followed" in error.message
    assert (error.details["status"], error.retryable) == (status, False)
    assert host.requests == ["/a"]


@pytest.mark.parametrize("name", INSIDE)
def test_nothing_private_is_put_to(host: ImageHost, name: str) -> None:
    """However the address is written: what is checked is what is dialled."""
    error = failure(f"http://{name}:{host.port}/a?signature=1", Uploader(timeout_s=5, ports=ANY_PORT))

    assert "not on the public internet" in error.message
    assert not error.retryable
    assert host.requests == []


@pytest.mark.parametrize("name", INSIDE)
def test_the_check_refuses_what_is_private(name: str) -> None:
    """Before any GPU time, by the name of the field."""
    with pytest.raises(BadInput, match=r"^upload_url: its host is not on the public internet: give") as caught:
        Uploader(timeout_s=5).check(f"http://{name}/a")

    problem = {
        "field": "upload_url",
        "problem": "its host is not on the public internet: give an address that anybody can reach",
    }
    assert caught.value.details == {"problems": [problem]}


def test_the_check_refuses_a_closed_port() -> None:
    """As of a source; nothing is looked up."""
    with pytest.raises(BadInput, match=r"^upload_url: its port 22 is closed here: give") as caught:
        Uploader(timeout_s=5).check("http://host.invalid:22/a")

    assert not caught.value.retryable
    assert "port 22 is closed" in failure("http://host.invalid:22/a?signature=1", Uploader(timeout_s=5)).message


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://host.invalid/a", "its host has no address"),
        ("http://*.com/a", "its address is not valid"),
        ("http://[::1]x/", "its address is not valid"),
        ("http://a..b/", "its host is not a valid name"),
    ],
)
def test_the_check_refuses_a_host_that_cannot_be_dialled(url: str, problem: str) -> None:
    """A name that nobody knows is the caller's to mend, too."""
    with pytest.raises(BadInput, match=f"^upload_url: {problem}: check") as caught:
        uploader().check(url)
    # Names come and go: a source whose host has none may be tried again, too.
    assert caught.value.retryable is ("no address" in problem)
    assert problem in failure(url).message


def test_the_check_asks_the_host_nothing(host: ImageHost) -> None:
    """A network that the operator opened is let through; a presigned link may be good for one request."""
    uploader().check(host.url("/a"))
    uploader().check(f"https://localhost:{host.port}/a")

    assert host.requests == []


def test_a_closed_port_fails() -> None:
    """Nothing listens; it may later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = failure(f"http://127.0.0.1:{probe.getsockname()[1]}/")

    assert error.retryable
    assert "status" not in error.details


@pytest.mark.slow
@pytest.mark.parametrize("data", [PICTURE, LARGE])
@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_host_that_never_answers_ends_at_the_deadline(host: ImageHost, head: bytes, drop: bytes, data: bytes) -> None:
    """Whether it is silent or drips, and whether the body fits into the buffers or not."""
    reply = writes(head, drop) if drop else Reply(script=lambda _: time.sleep(10))
    host.replies["/a"] = reply
    begin = time.monotonic()
    error = failure(host.url("/a"), uploader(timeout_s=0.5), data)

    assert time.monotonic() - begin < 8
    assert error.message == "upload_url: it took longer than 0.5 s: try again"
    assert error.retryable


DRIPS = b"Content-Length: 900\r\n\r\n"


def test_success_does_not_wait_for_the_answers_body(host: ImageHost) -> None:
    """The status says it; what follows is dripped for ever."""
    host.replies["/a"] = writes(b"HTTP/1.1 200 OK\r\n" + DRIPS, b"x")
    uploader(timeout_s=5).put(host.url("/a"), PICTURE, "image/png")


@pytest.mark.parametrize("line", [b"HTTP/1.1 500 Sorry\r\n", b"HTTP/1.1 302 Found\r\nLocation: /b\r\n"])
def test_a_refusal_does_not_wait_for_the_answers_body(host: ImageHost, line: bytes) -> None:
    """Nor does a redirect, whose body the libraries read by themselves."""
    host.replies["/a"] = writes(line + DRIPS, b"x")
    error = failure(host.url("/a"))

    assert error.details["status"] == int(line.split()[1])


def test_a_host_that_refuses_early_and_closes_is_understood(host: ImageHost) -> None:
    """It answers while the body is still on its way."""
    host.replies["/a"] = writes(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    error = failure(host.url("/a"), data=LARGE)

    assert (error.details["status"], error.retryable) == (413, False)
    assert "ask for a smaller result" in error.message


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 2"])
@pytest.mark.parametrize("data", [PICTURE, LARGE])
def test_a_host_that_breaks_off_fails(host: ImageHost, answer: bytes, data: bytes) -> None:
    """With the typed error, whatever the libraries raise."""
    host.replies["/a"] = writes(answer)

    assert failure(host.url("/a"), data=data).retryable


@pytest.mark.slow
def test_a_body_may_take_longer_than_connecting(host: ImageHost) -> None:
    """Only the deadline ends it: a slow line is no failure."""

    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(CONNECT_TIMEOUT_S + 0.5)
        host.uploads["/a"] = handler.rfile.read(len(LARGE))
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    host.replies["/a"] = Reply(script=slow)
    uploader(timeout_s=30).put(host.url("/a"), LARGE, "image/png")

    assert host.uploads["/a"] == LARGE


def trusting(file: Path) -> Uploader:
    return Uploader(timeout_s=5, private=LOOPBACK, ca_file=str(file), ports=ANY_PORT)


def test_https_is_put_to(host: ImageHost, authority: Authority) -> None:
    """With the name checked against the certificate, though an address is dialled."""
    with TLSForwarder(host.port, authority.context("localhost")) as tls:
        trusting(authority.file).put(f"https://localhost:{tls.port}/a", PICTURE, "image/png")

    assert host.uploads == {"/a": PICTURE}


def test_a_certificate_that_does_not_fit_fails(host: ImageHost, authority: Authority, tmp_path: Path) -> None:
    """Of another name; of an authority that nobody knows. The libraries name the link in what they raise."""
    for name, trusted in (("elsewhere.example", authority.file), ("localhost", Authority(tmp_path).file)):
        with TLSForwarder(host.port, authority.context(name)) as tls:
            failure(f"https://localhost:{tls.port}/a?signature=1", trusting(trusted))

    assert host.requests == []
