"""Reading an answer, from a socket whose other end is here. Hostile ones are in tests/hostile."""

import socket
from collections.abc import Iterator

import pytest

from qwen_worker.deadlines import Deadline
from qwen_worker.web.answer import Answer

CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end, and the client's."""
    server, client = socket.socketpair()
    with server, client:
        yield server, client


def test_what_came_before_the_deadline_is_not_read_after_it(pair: tuple[socket.socket, socket.socket]) -> None:
    """Of a socket that is shut the kernel still hands out what it had taken in: that may be megabytes of lines."""
    server, client = pair
    server.sendall(CHUNKS)
    with Deadline(60) as deadline:
        deadline.guard(client)
        answer = Answer(client)
        answer.begin()
        assert answer.fp.readline() == b"1\r\n"
        deadline.cut()
        with pytest.raises(TimeoutError):
            answer.fp.readline()
        with pytest.raises(TimeoutError):
            answer.fp.read(1)
    answer.close()


@pytest.mark.parametrize("status", [b"102 Processing", b"103 Early Hints", b"104 Upload Resumption Supported"])
def test_the_answer_comes_after_others(pair: tuple[socket.socket, socket.socket], status: bytes) -> None:
    """With their headers, which are not the answer's."""
    server, client = pair
    early = b"HTTP/1.1 " + status + b"\r\nLink: </a>\r\n\r\n"
    server.sendall(early * 2 + b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
    answer = Answer(client)
    answer.begin()

    assert answer.status == 200
    assert answer.msg.items() == [("X", "y")]
    answer.close()


def test_no_cookie_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    """The libraries would make objects of each."""
    server, client = pair
    server.sendall(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nSet-Cookie2: c,d\r\nX: y\r\nSET-COOKIE: e=f\r\n\r\n")
    answer = Answer(client)
    answer.begin()

    assert answer.msg.items() == [("X", "y")]
    answer.close()
