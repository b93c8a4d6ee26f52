"""The proxy before the bucket: what no fault meets is passed on, and each fault does what its name says."""

import hashlib
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import urllib3
from minio import Minio
from urllib3.exceptions import HTTPError

from local.bucket import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, LocalBucket
from local.fault_kinds import KINDS
from local.fault_proxy import REFUSED, Fault, FaultProxy

pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 8
KEY = "faults/sources/1"
NEW = "faults/sources/new"
DIGEST = hashlib.sha256(DATA).hexdigest()
TIMEOUT_S = 0.3  # until what does not come is given up
MOST = 10_000  # bytes of an answer that may have no end
RAW = ("drip", "drip of the body", "100 Continue without end")  # a client would wait for their end


class Caller:
    """Asks through a proxy: once, with signatures for the proxy's own address."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.http = urllib3.PoolManager(timeout=TIMEOUT_S, retries=False)
        self.client = Minio(
            proxy.host, access_key=ACCESS_KEY, secret_key=SECRET_KEY, region=REGION, secure=False, http_client=self.http
        )

    def ask(self, method: str, key: str, data: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        link = self.client.get_presigned_url(method, BUCKET, key)
        sent = {"x-amz-meta-sha256": DIGEST} if data else None
        answer = self.http.request(method, link, body=data, headers=sent, redirect=False, preload_content=False)
        body = answer.read(MOST)
        answer.close()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, body

    def told(self, method: str, data: bytes | None = None) -> tuple[object, ...]:
        """What of an answer does not change from one time to the next, or how it failed."""
        try:
            status, headers, body = self.ask(method, KEY, data)
        except HTTPError as error:
            return (type(error).__name__,)
        return status, headers.get("content-length"), headers.get("x-amz-meta-sha256"), headers.get("etag"), body


@pytest.fixture(scope="module")
def proxy(shared_bucket: LocalBucket) -> Iterator[FaultProxy]:
    """Before a bucket that has an object at `KEY`."""
    with FaultProxy(shared_bucket.port) as between:
        Caller(between).ask("PUT", KEY, DATA)
        yield between


@pytest.fixture
def caller(proxy: FaultProxy) -> Caller:
    """When nothing goes wrong."""
    proxy.fault = None
    return Caller(proxy)


def test_what_no_fault_meets_is_passed_on(proxy: FaultProxy, caller: Caller, shared_bucket: LocalBucket) -> None:
    """Both ways, byte for byte, on one connection; and counted."""
    proxy.fault = Fault("500", ("PUT",), "results/")
    before = proxy.count(NEW)
    status, _, _ = caller.ask("PUT", NEW, DATA)
    found = caller.ask("GET", NEW)

    assert (status, found[0], found[2], found[1]["x-amz-meta-sha256"]) == (200, 200, DATA, DIGEST)
    assert shared_bucket.client.get_object(BUCKET, NEW).data == DATA
    assert caller.ask("HEAD", NEW)[1]["content-length"] == str(len(DATA))
    assert proxy.count(NEW) - before == 3
    assert [one.fault for one in proxy.met(NEW, "PUT")][-1:] == [None]


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind not in RAW), REFUSED])
def test_a_fault_is_none_of_the_true_answers(proxy: FaultProxy, caller: Caller, kind: str) -> None:
    """Of a read or of a write; and then the truth is told again."""
    true = caller.told("PUT", DATA), caller.told("GET")
    proxy.fault = Fault(kind, times=1)
    read = caller.told("GET")
    proxy.fault = Fault(kind, times=1)
    written = caller.told("PUT", DATA)
    proxy.fault = None

    assert true[0][0] == true[1][0] == 200
    assert (written, read) != true
    assert (caller.told("PUT", DATA), caller.told("GET")) == true


@pytest.mark.parametrize(
    ("kind", "status", "header", "value"),
    [
        ("503", 503, "content-type", "application/xml"),
        ("503, Retry-After 1", 503, "retry-after", "1"),
        ("503, Retry-After 3600", 503, "retry-after", "3600"),
        ("a page, 200", 200, "content-type", "text/html"),
        ("truncated body", None, "", ""),
        ("reset in the body", None, "", ""),
        ("empty 200", 200, "content-length", "0"),
    ],
)
def test_faults_are_what_they_are_called(
    proxy: FaultProxy, caller: Caller, kind: str, status: int | None, header: str, value: str
) -> None:
    """A sample."""
    proxy.fault = Fault(kind)
    if status is None:
        with pytest.raises(HTTPError):
            caller.ask("GET", KEY)
    else:
        answer = caller.ask("GET", KEY)
        assert (answer[0], answer[1][header]) == (status, value)


def test_one_bit_is_wrong(proxy: FaultProxy, caller: Caller) -> None:
    """Of what is read, and of what is written, on its way."""
    proxy.fault = Fault("wrong bytes", ("GET",))
    read = caller.ask("GET", KEY)[2]
    proxy.fault = Fault("wrong bytes", ("PUT",))
    caller.ask("PUT", NEW, DATA)
    written = caller.ask("GET", NEW)[2]
    wrong = [sum((one ^ two).bit_count() for one, two in zip(DATA, data, strict=True)) for data in (read, written)]

    assert wrong == [1, 1]


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("drip", rb"H.{0,50}"),
        ("drip of the body", rb"HTTP/1\.1 200 OK\r\n.*\r\n\r\n.{0,50}"),
        ("100 Continue without end", rb"(HTTP/1\.1 100 Continue\r\n\r\n)+.*"),
    ],
)
def test_an_answer_takes_its_time(proxy: FaultProxy, caller: Caller, kind: str, first: bytes) -> None:
    """What comes of it first."""
    proxy.fault = Fault(kind)
    link = urlsplit(caller.client.get_presigned_url("GET", BUCKET, KEY))
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
        connection.sendall(f"GET {link.path}?{link.query} HTTP/1.1\r\nHost: {proxy.host}\r\n\r\n".encode())

        assert re.fullmatch(first, connection.recv(MOST), re.DOTALL)


def test_an_empty_200_stores_nothing(proxy: FaultProxy, caller: Caller) -> None:
    """It is acknowledged all the same."""
    proxy.fault = Fault("empty 200", ("PUT",))

    assert caller.ask("PUT", "faults/never", DATA)[0] == 200
    assert caller.ask("GET", "faults/never")[0] == 404


def test_a_fault_meets_whom_it_is_meant_for(proxy: FaultProxy, caller: Caller) -> None:
    """By method, by key, and so many times."""
    proxy.fault = Fault("500", ("GET",), "sources/1$", times=2)

    assert [caller.ask(method, KEY)[0] for method in ("HEAD", "GET", "GET", "GET")] == [200, 500, 500, 200]
    proxy.fault = Fault("500", ("GET",), "results/")
    assert caller.ask("GET", KEY)[0] == 200
    with pytest.raises(ValueError, match="no such fault"):
        proxy.fault = Fault("499")


def test_a_proxy_that_is_down_comes_back_where_it_was(proxy: FaultProxy, caller: Caller) -> None:
    """Kept connections are cut too."""
    caller.ask("GET", KEY)
    proxy.down()
    with pytest.raises(HTTPError):
        caller.ask("GET", KEY)
    proxy.up()

    assert caller.ask("GET", KEY)[2] == DATA


def test_who_follows_a_redirect_is_seen(proxy: FaultProxy, caller: Caller) -> None:
    """A worker must not be."""
    proxy.fault = Fault("307 elsewhere", ("GET",))
    location = caller.ask("GET", KEY)[1]["location"]
    before = proxy.strayed
    with pytest.raises(HTTPError):
        caller.http.request("GET", location)

    assert proxy.strayed == before + 1
