"""The worker against hostile servers, with short deadlines; `make hostile` has the long ones, and measures memory."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hostile.outcome import REQUESTS, WORKER, Outcome
from hostile.servers import answers, connections, uploads
from hostile.servers import suites as servers
from hostile.servers import tls as tls_servers
from hostile.servers.attempt import LOOPBACK, PORTS
from hostile.servers.behaviours import LARGEST, MAX_BYTES, PICTURE
from hostile.servers.suites import Case, Range, judged, overhears, path
from local.hostile_server import DeafServer, HostileServer, by_path
from qwen_worker.errors import BadInput, DownloadFailed, StorageError
from qwen_worker.sources.fetch import Fetcher
from qwen_worker.upload import Uploader

DEADLINE_S = 0.3
#: Far from every deadline here, on however busy a machine: how long things take is for the report.
FAR_S = 15.0
#: They end only by the deadline.
PATIENT = (
    "hang",
    "header drip",
    "headers drip",
    "body drip",
    "chunk drip",
    "trailer drip",
    "100 drip",
    "103 drip",
    "one-byte chunks flood",
)
#: They end at once.
BROKEN = (
    "short body",
    "endless body",
    "zip with spaces",
    "gzip of a name without end",
    "header flood",
    "endless 100-continue",
    "103 flood",
    "103 header without end",
    "reset",
    "bad chunk",
    "huge chunk",
    "empty",
    "close",
    "junk",
    "HTTP/0.9",
    "500 drip",
    "one byte over, in chunks",
    "one byte over, until the end",
    "trailer line without end",
    "status line without end",
    "status of 5,000 digits",
    "half-closed in the headers",
    "folds without end",
    "most headers at each hop",
    "Location that is garbage",
    "Location with a bad port",
    "10,000 Locations",
    "redirect without Location",
    *(name for name in answers.CHUNKS if " -" in name or "fer-En" in name),
    *answers.LENGTHS,
)
SLOW_CONTROLS = {"good after a slow redirect", *(name for name in answers.CONTROLS if name.startswith("as long"))}
PLAIN = answers.ATTACKS | answers.CONTROLS | uploads.ATTACKS | uploads.CONTROLS
INSIDE = connections.INSIDE_TLS | connections.INSIDE_TLS_CONTROLS


def fetcher(timeout_s: float = DEADLINE_S, ca_file: Path | None = None) -> Fetcher:
    return Fetcher(MAX_BYTES, timeout_s, LOOPBACK, str(ca_file) if ca_file else None, PORTS)


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[str], str]]:
    """The address at which a behaviour is met, by its name."""
    with HostileServer(by_path({path(name): behaviour for name, behaviour in PLAIN.items()})) as running:
        yield lambda name: running.url(path(name))


@pytest.mark.parametrize("name", PATIENT)
def test_the_deadline_holds_whatever_a_server_drips(server: Callable[[str], str], name: str) -> None:
    """Each read gets its bytes in time; the whole does not."""
    begin = time.monotonic()
    with pytest.raises(DownloadFailed, match=r"longer than 0\.3 s"):
        fetcher().fetch(server(name))

    assert time.monotonic() - begin < FAR_S


def delivered(url: str, by: Fetcher) -> bytes | None:
    """None if it is refused as it must be."""
    try:
        return by.fetch(url)
    except (BadInput, DownloadFailed):
        return None


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_never_passes_as_whole(server: Callable[[str], str], name: str) -> None:
    """Refused, or with exactly the right bytes where one reading of it alone is possible; before the deadline."""
    begin = time.monotonic()

    assert delivered(server(name), fetcher(2 * FAR_S)) in {None, PICTURE}
    assert time.monotonic() - begin < FAR_S


@pytest.mark.parametrize("name", sorted(answers.CONTROLS.keys() - SLOW_CONTROLS))
def test_what_is_odd_but_right_is_delivered(server: Callable[[str], str], name: str) -> None:
    """To the byte."""
    assert fetcher(5).fetch(server(name)) == PICTURE


def test_the_body_of_a_redirect_is_not_read(server: Callable[[str], str]) -> None:
    """Requests reads it to the end, even when told not to follow."""
    assert fetcher(5).fetch(server("endless 3xx body")) == PICTURE


def test_a_length_over_the_limit_is_refused_for_what_it_is(server: Callable[[str], str]) -> None:
    """The caller learns the limit, not that time ran out."""
    with pytest.raises(BadInput, match="26214400 bytes"):
        fetcher(5).fetch(server("one byte over"))


def test_a_connection_that_is_reset_at_once_fails() -> None:
    """Again and again: now and then the reset is there before connecting has returned."""
    with HostileServer(connections.UNHEARD["reset at once"]) as resetting, ThreadPoolExecutor(8) as pool:
        url = f"http://127.0.0.1:{resetting.port}/"

        assert set(pool.map(lambda _: delivered(url, fetcher(5)), range(100))) == {None}


@pytest.mark.slow
def test_every_attack_ends_typed_and_in_time(server: Callable[[str], str]) -> None:
    """The whole list, with a short deadline."""

    def fault(name: str) -> str | None:
        begin = time.monotonic()
        body = delivered(server(name), fetcher(1))
        took = time.monotonic() - begin
        return None if body in {None, PICTURE} and took < FAR_S else f"{took} s, {body is not None}"

    with ThreadPoolExecutor(8) as pool:
        faults = dict(zip(answers.ATTACKS, pool.map(fault, answers.ATTACKS), strict=True))

    assert {name: fault for name, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("name", ["TLS handshake drip", "TLS hello never read", "TLS junk", "http on a TLS port"])
def test_a_handshake_that_never_ends_is_cut(name: str) -> None:
    """The socket that is shut is the one below TLS."""
    with HostileServer(connections.HANDSHAKES[name]) as server, pytest.raises(DownloadFailed):
        fetcher().fetch(f"https://127.0.0.1:{server.port}/")


def test_a_host_that_never_accepts_fails() -> None:
    """Its queue is full: the connection itself hangs."""
    begin = time.monotonic()
    with DeafServer() as deaf, pytest.raises(DownloadFailed):
        fetcher().fetch(f"http://127.0.0.1:{deaf.port}/")

    assert time.monotonic() - begin < FAR_S


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    """Servers with good certificates, and with bad ones."""
    with contextlib.ExitStack() as stack:
        yield Range(WORKER, stack, tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def inside(certified: Range) -> Callable[[str], str]:
    """The address at which a behaviour is met inside TLS."""
    running = certified.paths(INSIDE, tls=True)
    return lambda name: running.url(path(name))


def test_the_deadline_holds_inside_tls(certified: Range, inside: Callable[[str], str]) -> None:
    """A drip inside TLS is a drip."""
    with pytest.raises(DownloadFailed, match=r"longer than 0\.3 s"):
        fetcher(DEADLINE_S, certified.ca_file).fetch(inside("TLS, body drip"))


@pytest.mark.parametrize("name", [name for name in connections.INSIDE_TLS if "cut" in name or "reset" in name])
def test_a_picture_cut_off_inside_tls_is_refused(certified: Range, inside: Callable[[str], str], name: str) -> None:
    """TLS says when it ends; who cuts the connection cannot say it."""
    with pytest.raises(DownloadFailed):
        fetcher(5, certified.ca_file).fetch(inside(name))


@pytest.mark.parametrize("name", connections.INSIDE_TLS_CONTROLS)
def test_a_picture_comes_through_tls(certified: Range, inside: Callable[[str], str], name: str) -> None:
    """Also one without a length, if TLS is ended as it should be."""
    assert fetcher(5, certified.ca_file).fetch(inside(name)) in {PICTURE, LARGEST}


@pytest.fixture(scope="module")
def unproven(certified: Range) -> dict[str, tuple[str, ssl.SSLContext]]:
    """By case: the host that is asked for, and what its server shows."""
    named = tls_servers.contexts(certified.authority, certified.folder)
    addressed = tls_servers.by_address(certified.authority, certified.folder)
    return {name: ("localhost", shown) for name, shown in named.items()} | {
        name: ("127.0.0.1", shown) for name, shown in addressed.items()
    }


def test_nothing_is_said_to_a_server_that_cannot_prove_who_it_is(
    certified: Range, unproven: dict[str, tuple[str, ssl.SSLContext]]
) -> None:
    """Wrong names, wrong times, wrong authorities, old versions: refused before a byte of the request, of a PUT too."""
    told = []
    for name, (host, shown) in unproven.items():
        heard: list[bytes] = []
        with HostileServer(overhears(shown, heard)) as server:
            url = f"https://{host}:{server.port}{servers.TARGET}"
            with pytest.raises(DownloadFailed):
                fetcher(5, certified.ca_file).fetch(url)
            with pytest.raises(StorageError):
                Uploader(5, LOOPBACK, str(certified.ca_file), PORTS).put(url, PICTURE, "image/png")
        told += [name for said in heard if b"HTTP/1.1" in said or b"the-path" in said]
        assert len(heard) >= 2, name

    assert len(unproven) > 30
    assert told == []


def test_those_servers_would_listen(unproven: dict[str, tuple[str, ssl.SSLContext]]) -> None:
    """A client that checks nothing gets its picture from each: it is the worker that refuses them."""
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    careless.minimum_version = ssl.TLSVersion.TLSv1
    careless.set_ciphers("ALL:@SECLEVEL=0")
    for name, (_, shown) in unproven.items():
        heard: list[bytes] = []
        with (
            HostileServer(overhears(shown, heard)) as server,
            careless.wrap_socket(socket.create_connection(("127.0.0.1", server.port))) as client,
        ):
            client.sendall(b"GET /the-path HTTP/1.1\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200"), name


@pytest.mark.slow
def test_every_attack_on_a_put_ends_typed_and_in_time(server: Callable[[str], str]) -> None:
    """The whole list, with a short deadline: none is taken for a success."""

    def fault(name: str) -> str | None:
        begin = time.monotonic()
        try:
            Uploader(1, LOOPBACK, ports=PORTS).put(server(name), LARGEST, "image/png")
        except StorageError:
            took = time.monotonic() - begin
            return None if took < FAR_S else f"{took} s"
        return "taken for a success"

    with ThreadPoolExecutor(8) as pool:
        faults = dict(zip(uploads.ATTACKS, pool.map(fault, uploads.ATTACKS), strict=True))

    assert {name: fault for name, fault in faults.items() if fault} == {}


def measured(certified: Range, case: Case) -> Outcome:
    """In a process of its own."""
    return next(iter(certified.outcomes([case])))


@pytest.mark.slow
def test_a_body_is_in_memory_once(certified: Range, server: Callable[[str], str]) -> None:
    """The largest takes its own size, and a little for the reading."""
    outcome = measured(certified, Case("largest", "GET", server("as long as may be"), control=True))

    assert outcome.through is None
    assert 26 < (outcome.peak_mb or 0) < 40


@pytest.mark.slow
def test_a_fetch_without_guards_does_not_get_through_the_measurement(server: Callable[[str], str]) -> None:
    """The attacks bite, and are seen to: by their bytes, by their memory."""
    with contextlib.ExitStack() as stack, TemporaryDirectory() as folder:
        naive = Range(REQUESTS, stack, Path(folder))

        assert "wrong bytes" in (measured(naive, Case("x", "GET", server("length -1, cut"))).through or "")
        assert " MB" in (measured(naive, Case("x", "GET", server("gzip 64 MB"))).through or "")


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        ({"error": "DownloadFailed"}, None),
        ({"error": "BadInput"}, None),
        ({"error": "ValueError"}, "ValueError"),
        ({"error": "MemoryError"}, "MemoryError"),
        ({"error": "none", "message": "did not end", "seconds": 20.0}, "did not end"),
        ({"size": 3, "sha256": "0"}, "3 wrong bytes"),
        ({"error": "DownloadFailed", "seconds": 9.5}, "9.5 s"),
        ({"error": "DownloadFailed", "peak_mb": 65.0}, "65 MB"),
    ],
)
def test_an_outcome_is_judged_by_all_that_must_hold(ended: dict[str, Any], fault: str | None) -> None:
    """Type, bytes, time and memory."""
    through = judged(
        Case("x", "GET", "http://x/"), {"seconds": 1.0, "peak_mb": 1.0, "message": "", **ended}, WORKER
    ).through

    assert through is None if fault is None else fault in (through or "")
