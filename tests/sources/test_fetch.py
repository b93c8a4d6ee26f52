"""GET under limits, against a real server; hostile ones are in tests/hostile."""

import asyncio
import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path

import pytest

from local.tls import Authority, TLSForwarder
from local.web import ImageHost, Reply
from qwen_worker.deadlines import cut_when_cancelled
from qwen_worker.errors import BadInput, DownloadFailed, WorkerError
from qwen_worker.hosts import HostList
from qwen_worker.sources.fetch import Fetcher

LOOPBACK = (ip_network("127.0.0.0/8"),)
LIMIT = 1000
ANY_PORT = (range(1, 65536),)


def fetcher(timeout_s: float = 5.0) -> Fetcher:
    return Fetcher(max_bytes=LIMIT, timeout_s=timeout_s, private=LOOPBACK, ports=ANY_PORT)


def test_the_body_is_returned(host: ImageHost) -> None:
    """Up to the limit, to the byte."""
    assert fetcher().fetch(host.put("/a", b"x" * LIMIT)) == b"x" * LIMIT


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/a%7eb%2Fc/../d//e?X-Amz-Signature=a%2fB%2F&x=1+2&y=%20",
        "/a;b=c/(d)'e'[f]{g}|h^i",
        "/?",
        "/a?b?c=/d",
    ],
)
def test_the_target_is_sent_byte_for_byte(host: ImageHost, target: str) -> None:
    """A signed link is valid in one spelling only; requests and urllib3 both write another."""
    assert fetcher().fetch(host.put(target, b"x")) == b"x"
    assert host.requests == [target]


def test_the_fragment_is_not_sent(host: ImageHost) -> None:
    """It is the client's."""
    fetcher().fetch(host.put("/a", b"x") + "#part")

    assert host.requests == ["/a"]


def test_what_is_not_ascii_is_encoded(host: ImageHost) -> None:
    """As a browser would."""
    host.put("/%C3%BC.jpg", b"x")

    assert fetcher().fetch(host.url("/ü.jpg")) == b"x"


def test_what_is_ascii_beside_it_is_sent_byte_for_byte(host: ImageHost) -> None:
    """The rest of the spelling may be signed too."""
    host.put("/%C3%BC/%7e/../a?b=%7E&%zz", b"x")

    assert fetcher().fetch(host.url("/ü/%7e/../a?b=%7E&%zz")) == b"x"


def test_one_byte_over_the_limit_is_refused(host: ImageHost) -> None:
    """Told with the limit."""
    with pytest.raises(BadInput, match="1000 bytes"):
        fetcher().fetch(host.put("/a", b"x" * (LIMIT + 1)))


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(404, False), (403, False), (410, False), (408, True), (429, True), (500, True), (503, True)],
)
def test_another_status_than_200_fails(host: ImageHost, status: int, retryable: bool) -> None:
    """Told with the status, and whether it is worth another try."""
    host.replies["/a"] = Reply(b"sorry", status)
    with pytest.raises(DownloadFailed) as caught:
        fetcher().fetch(host.url("/a"))

    assert caught.value.details == {"status": status}
    assert caught.value.retryable is retryable


def test_three_redirects_are_followed(host: ImageHost) -> None:
    """Relative ones too."""
    host.replies["/1"] = Reply(status=301, headers={"Location": "2"})
    host.replies["/2"] = Reply(status=302, headers={"Location": "/3"})
    host.replies["/3"] = Reply(status=307, headers={"Location": host.put("/4", b"x")})

    assert fetcher().fetch(host.url("/1")) == b"x"


def test_a_redirect_to_nowhere_is_an_answer_without_a_picture(host: ImageHost) -> None:
    """It is not asked again."""
    host.replies["/1"] = Reply(status=302, headers={"Location": ""})
    with pytest.raises(DownloadFailed) as caught:
        fetcher().fetch(host.url("/1"))

    assert caught.value.details == {"status": 302}
    assert host.requests == ["/1"]


def test_a_redirect_to_bytes_that_are_no_text_is_followed(host: ImageHost) -> None:
    """As browsers do."""
    host.replies["/1"] = Reply(status=302, headers={"Location": "/caf\xe9.jpg?a=%7E"})
    host.put("/caf%E9.jpg?a=%7E", b"x")

    assert fetcher().fetch(host.url("/1")) == b"x"


def test_a_redirect_with_a_space_is_followed(host: ImageHost) -> None:
    """As browsers do."""
    host.replies["/1"] = Reply(status=302, headers={"Location": "/a b.jpg?x=1 2"})
    host.put("/a%20b.jpg?x=1%202", b"x")

    assert fetcher().fetch(host.url("/1")) == b"x"


def test_a_fourth_redirect_fails(host: ImageHost) -> None:
    """A loop ends."""
    host.replies["/1"] = Reply(status=308, headers={"Location": "/1"})
    with pytest.raises(DownloadFailed, match="more than 3"):
        fetcher().fetch(host.url("/1"))

    assert len(host.requests) == 4


def test_an_operator_says_how_many_redirects_are_followed(host: ImageHost) -> None:
    """None, perhaps."""
    host.replies["/1"] = Reply(status=302, headers={"Location": host.put("/2", b"x")})
    with pytest.raises(DownloadFailed, match="more than 0"):
        replace(fetcher(), max_redirects=0).fetch(host.url("/1"))

    assert host.requests == ["/1"]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "data:,x"])
def test_a_redirect_leads_to_http_only(host: ImageHost, location: str) -> None:
    """No other scheme."""
    host.replies["/1"] = Reply(status=302, headers={"Location": location})
    with pytest.raises(DownloadFailed, match="not an http address"):
        fetcher().fetch(host.url("/1"))


def test_a_redirect_is_checked_like_the_address_itself(host: ImageHost) -> None:
    """The usual way round a check."""
    host.replies["/1"] = Reply(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"})
    with pytest.raises(BadInput, match="not on the public internet"):
        fetcher().fetch(host.url("/1"))


@pytest.mark.parametrize(
    "name",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
def test_nothing_private_is_connected_to(host: ImageHost, name: str) -> None:
    """However the address is written: what is checked is what is dialled."""
    closed = Fetcher(max_bytes=LIMIT, timeout_s=5, ports=ANY_PORT)
    url = host.put("/a", b"x").replace("127.0.0.1", name)
    with pytest.raises(WorkerError) as caught:
        closed.fetch(url)

    assert caught.value.type in {"BadInput", "DownloadFailed"}
    assert host.requests == []


def test_the_loopback_host_is_refused_as_bad_input(host: ImageHost) -> None:
    """The caller must change the request, and learns why."""
    with pytest.raises(BadInput, match="not on the public internet"):
        Fetcher(max_bytes=LIMIT, timeout_s=5, ports=ANY_PORT).fetch(host.put("/a", b"x"))


def test_the_environments_proxy_is_not_used(host: ImageHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name itself, unchecked."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ImageHost() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))

        assert fetcher().fetch(host.put("/a", b"x")) == b"x"
        assert proxy.requests == []


def test_a_host_that_does_not_exist_fails() -> None:
    """RFC 6761: .invalid never resolves."""
    with pytest.raises(DownloadFailed, match="no address"):
        fetcher().fetch("http://host.invalid/a")


def test_a_closed_port_fails() -> None:
    """Nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadFailed):
            fetcher().fetch(f"http://127.0.0.1:{probe.getsockname()[1]}/")


def _drip(head: bytes, drop: bytes) -> Reply:
    def script(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        for _ in range(400):
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.05)

    return Reply(script=script)


@pytest.fixture
def tls(host: ImageHost, authority: Authority) -> Iterator[Callable[..., TLSForwarder]]:
    """The image host behind TLS, with a certificate for the names that a test gives."""
    with contextlib.ExitStack() as stack:
        yield lambda *names: stack.enter_context(TLSForwarder(host.port, authority.context(*names)))


def over_tls(authority: Authority | None, timeout_s: float = 5.0) -> Fetcher:
    file = str(authority.file) if authority else None
    return Fetcher(max_bytes=LIMIT, timeout_s=timeout_s, private=LOOPBACK, ca_file=file, ports=ANY_PORT)


def test_https_is_fetched(host: ImageHost, tls: Callable[..., TLSForwarder], authority: Authority) -> None:
    """With the name checked against the certificate, though an address is dialled."""
    host.put("/a%7e?x=1", b"x" * LIMIT)
    port = tls("localhost").port

    assert over_tls(authority).fetch(f"https://localhost:{port}/a%7e?x=1") == b"x" * LIMIT
    assert host.requests == ["/a%7e?x=1"]


@pytest.mark.parametrize("url", ["http://*.com/a", "http://.example.invalid/", "http://[::1]x/", "http://a..b/"])
def test_an_address_that_no_library_understands_is_bad_input(url: str) -> None:
    """Another try would not help."""
    with pytest.raises(BadInput, match=r"not valid|not a valid"):
        fetcher().fetch(url)


def test_a_cancelled_task_takes_its_fetch_along(host: ImageHost) -> None:
    """Else a few stopped jobs of a slow host would hold every thread until the deadline."""
    host.replies["/a"] = _drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x")
    ended: list[float] = []

    def fetch() -> None:
        try:
            fetcher(timeout_s=15).fetch(host.url("/a"))
        finally:
            ended.append(time.monotonic())

    async def stop() -> float:
        with cut_when_cancelled():
            await asyncio.to_thread(fetch)
        return 0

    async def main() -> float:
        task = asyncio.create_task(stop())
        while not host.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return time.monotonic()

    cancelled = asyncio.run(main())

    assert ended[0] - cancelled < 5


def test_nothing_is_left_behind(host: ImageHost) -> None:
    """No thread and no open file per fetch, whether it succeeds or not."""
    good, bad = host.put("/a", b"x"), host.put("/b", b"x" * (LIMIT + 1))

    def left() -> tuple[int, int]:
        with contextlib.suppress(BadInput):
            for _ in range(20):
                fetcher().fetch(good)
                fetcher().fetch(bad)
        time.sleep(0.5)
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    first, second = left(), left()

    assert second[0] <= first[0] + 2
    assert second[1] <= first[1] + 2


@pytest.mark.parametrize(
    "url", ["http://example.com:22/", "https://[2606:4700::1111]:6379/a", "http://host.invalid:81/"]
)
def test_a_port_that_is_not_open_is_refused(url: str) -> None:
    """Before the host is looked up: a name that does not exist is told otherwise."""
    with pytest.raises(BadInput, match=r"port \d+ is closed here: give an address with one of 80, 443, 8080, 8443"):
        Fetcher(max_bytes=LIMIT, timeout_s=5).fetch(url)


def test_a_redirect_to_a_closed_port_is_refused(host: ImageHost) -> None:
    """The rule holds at every hop."""
    other = Fetcher(max_bytes=LIMIT, timeout_s=5, private=LOOPBACK, ports=(range(host.port, host.port + 1),))
    host.replies["/1"] = Reply(status=302, headers={"Location": "http://127.0.0.1:22/"})
    with pytest.raises(BadInput, match="port 22 is closed"):
        other.fetch(host.url("/1"))


def test_only_hosts_that_the_operator_opened_are_asked(host: ImageHost) -> None:
    """However they are spelt, and at every hop."""
    chosen = replace(fetcher(), hosts=HostList.parse("127.0.0.1, localhost, !127.0.0.2"))
    host.replies["/1"] = Reply(status=302, headers={"Location": f"http://127.2:{host.port}/a"})
    host.put("/a", b"x")

    assert chosen.fetch(host.url("/a")) == b"x"
    for url in (host.url("/1"), f"http://127.0.0.3:{host.port}/a", "http://host.invalid/"):
        with pytest.raises(BadInput, match="not one that this worker fetches from"):
            chosen.fetch(url)
    assert host.requests == ["/a", "/1"]


def test_a_packed_body_is_unpacked(host: ImageHost) -> None:
    """Some hosts compress whatever they are asked for."""
    packed = gzip.compress(b"x" * LIMIT)

    assert fetcher().fetch(host.put("/a", packed, **{"Content-Encoding": "gzip"})) == b"x" * LIMIT


def test_a_file_of_several_packed_parts_is_whole(host: ImageHost) -> None:
    """As `cat a.gz b.gz` makes one; zeros behind it are padding."""
    packed = gzip.compress(b"one ") + gzip.compress(b"two") + bytes(100)

    assert fetcher().fetch(host.put("/a", packed, **{"Content-Encoding": "gzip"})) == b"one two"


@pytest.mark.parametrize("coding", ["", "identity", "aws-chunked", "none", "UTF-8", "base64", "identity, identity"])
def test_a_coding_that_is_none_is_ignored(host: ImageHost, coding: str) -> None:
    """Objects keep such words from those who stored them."""
    assert fetcher().fetch(host.put("/a", b"x", **{"Content-Encoding": coding})) == b"x"


@pytest.mark.parametrize("location", ["http://[::1/", "http://a:99999/", "http://a:b/", "http://[v1.x]/"])
def test_a_redirect_to_no_address_is_not_tried_again(host: ImageHost, location: str) -> None:
    """It is malformed each time."""
    host.replies["/1"] = Reply(status=302, headers={"Location": location})
    with pytest.raises(DownloadFailed, match="not an http address") as caught:
        fetcher().fetch(host.url("/1"))

    assert not caught.value.retryable


def test_a_packed_body_counts_with_what_it_unfolds_to(host: ImageHost) -> None:
    """Or a few bytes would fill the memory."""
    url = host.put("/a", gzip.compress(b"x" * (LIMIT + 1)), **{"Content-Encoding": "gzip"})
    with pytest.raises(BadInput, match="1000 bytes"):
        fetcher().fetch(url)


@pytest.mark.parametrize(("coding", "kept"), [("gzip", -1), ("gzip, gzip", None), ("br", None), ("zstd", None)])
def test_a_body_that_cannot_be_unpacked_fails(host: ImageHost, coding: str, kept: int | None) -> None:
    """Cut off, or in a way that nobody needs."""
    packed = gzip.compress(b"x" * LIMIT)[:kept]
    with pytest.raises(DownloadFailed):
        fetcher().fetch(host.put("/a", packed, **{"Content-Encoding": coding}))


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "data:,x", "", "x"]
)
def test_only_http_is_fetched(url: str) -> None:
    """The request's schema says so first; this is the last line."""
    with pytest.raises(BadInput, match="not valid"):
        fetcher().fetch(url)
