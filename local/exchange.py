"""One HTTP request on its way to a server, and the answer on its way back."""

import re
import socket

from local.hostile_server import CHUNK, Peer

TIMEOUT_S = 30.0  # of the server, which is the real one
BODILESS = re.compile(rb"HTTP/1\.\d (1\d\d|204|304) ")


class Exchange:
    """A request whose head was heard.

    Args:
        peer: who asks.
        port: of the server, on 127.0.0.1.
        elsewhere: host:port of another one.

    Attributes:
        method: GET and the like.
        path: of the request, without its query.
        head: request line and headers, with the empty line.
        size: of the request's body, in bytes.
    """

    def __init__(self, peer: Peer, port: int, elsewhere: str) -> None:
        self.peer = peer
        self.elsewhere = elsewhere
        self.method = peer.heard.partition(b" ")[0].decode("latin-1")
        self.path = peer.target.partition("?")[0]
        head, empty_line, self._body = peer.heard.partition(b"\r\n\r\n")
        self.head = head + empty_line
        self.size = length_of(self.head) or 0
        self._port = port

    def hear(self, size: int, pace: int = CHUNK) -> bytes:
        """So many bytes of the body from its begin, with reads of at most `pace` bytes."""
        while len(self._body) < size:
            self._body += _some(self.peer.connection, min(pace, size - len(self._body)))
        return self._body[:size]

    def body(self) -> bytes:
        """All of it."""
        return self.hear(self.size)

    def answer(self, body: bytes | None = None) -> tuple[bytes, bytes]:
        """The server's answer to the request, or to the same with another body: head and body."""
        with socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S) as server:
            server.sendall(self.head + (self.body() if body is None else body))
            return _answer(server, self.method)

    def pass_on(self) -> None:
        """The request as it is, and the answer as it is."""
        self.peer.send(b"".join(self.answer()))


def length_of(head: bytes) -> int | None:
    """What the headers say of the body's length in bytes, if they do."""
    said = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return int(said[1]) if said else None


def _answer(server: socket.socket, method: str) -> tuple[bytes, bytes]:
    heard = b""
    while b"\r\n\r\n" not in heard:
        heard += _some(server)
    head, empty_line, first = heard.partition(b"\r\n\r\n")
    head += empty_line
    if method == "HEAD" or BODILESS.match(head):
        return head, b""
    length = length_of(head)
    body = bytearray(first)
    while len(body) < length if length is not None else not (b"\r\n" + body).endswith(b"\r\n0\r\n\r\n"):
        body += _some(server)
    return head, bytes(body)


def _some(connection: socket.socket, size: int = CHUNK) -> bytes:
    block = connection.recv(size)
    if not block:
        raise ConnectionAbortedError
    return block
