"""What is sent to a stranger, and where to."""

import sys
from ipaddress import ip_network
from typing import Any

import pytest

from local.web import ImageHost
from qwen_worker.web.openings import Openings
from qwen_worker.web.session import Session

LOOPBACK = Openings((ip_network("127.0.0.0/8"),), (range(1, 65536),))
_heard: list[tuple[str, Any]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.getaddrinfo", "socket.connect"}:
        _heard.append((event, arguments))


sys.addaudithook(_hear)


def heard(port: int) -> list[tuple[str, Any]]:
    """What was looked up and dialled at a port, in any thread, as Python's own audit tells it: event and address."""
    asked = {"socket.getaddrinfo": lambda said: said[:2], "socket.connect": lambda said: said[1]}
    return [(event, address) for event, said in _heard if (address := asked[event](said))[1] == port]


def get(url: str) -> int:
    with Session(LOOPBACK, None) as session, session.send_exactly("GET", url, 5) as response:
        return response.status_code


def test_a_host_is_looked_up_once_and_what_was_found_is_dialled(host: ImageHost) -> None:
    """A second look-up may find another address than the one that was checked: a name that is rebound."""
    _heard.clear()  # an earlier host may have had this port
    assert get(host.put("/a", b"x")) == 200

    place = ("127.0.0.1", host.port)
    assert heard(host.port) == [("socket.getaddrinfo", place), ("socket.connect", place)]


def test_nothing_is_asked_for_that_could_unfold(host: ImageHost) -> None:
    """A body that is compressed could have any size; and nothing is said of who asks."""
    get(host.put("/a", b"x"))
    (headers,) = host.headers

    assert headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Proxy-Authorization", "Referer"} & set(headers.keys())


def test_a_login_of_this_machine_is_not_sent(
    host: ImageHost, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Requests would look the host up in ~/.netrc."""
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    get(host.put("/a", b"x"))

    assert "Authorization" not in host.headers[0]


def test_the_addresses_of_a_check_are_dialled_by_nobody(host: ImageHost) -> None:
    """The check of an upload's address looks it up, and that is all."""
    with Session(LOOPBACK, None) as session:
        found = session.addresses(host.url("/a"))

    assert [event for event, _ in heard(host.port)] == ["socket.getaddrinfo"]
    assert [item[4] for item in found] == [("127.0.0.1", host.port)]
