"""Connecting, on sockets of this machine."""

import socket
import threading
import time

import pytest

from local.hostile_server import DeafServer
from local.listener import Listener
from qwen_worker.deadlines import Deadline
from qwen_worker.web.dial import CONNECT_TIMEOUT_S, MOST_ADDRESSES, connect
from qwen_worker.web.lookup import Found


def place(port: int) -> Found:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]


@pytest.fixture
def closed_port() -> int:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_an_address_that_refuses_is_not_the_last(closed_port: int) -> None:
    """The next one is tried."""
    with Listener(lambda _: None) as listener:
        sock = connect([*place(closed_port), *place(listener.port)])
        assert sock.getpeername() == ("127.0.0.1", listener.port)
        sock.close()


def test_few_addresses_of_a_host_are_tried(closed_port: int) -> None:
    """An answer of a name server may hold thousands, each of somebody else."""
    with Listener(lambda _: None) as listener, pytest.raises(OSError, match="no address"):
        connect([*place(closed_port) * MOST_ADDRESSES, *place(listener.port)])


def test_connecting_ends_when_its_deadline_is_cut() -> None:
    """However many addresses there are: a job that was cancelled keeps no thread."""
    with DeafServer() as deaf, Deadline(60) as deadline:
        threading.Timer(0.2, deadline.cut).start()
        begin = time.monotonic()
        with pytest.raises(OSError, match="no address"):
            connect(place(deaf.port) * MOST_ADDRESSES)

        assert time.monotonic() - begin < CONNECT_TIMEOUT_S - 1
