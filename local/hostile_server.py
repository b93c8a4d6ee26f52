"""Servers that behave badly: a listener on the loopback address whose every connection one function plays."""

import contextlib
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from typing import Self

from local.listener import Listener

CHUNK = 64 * 1024
LINGER_0 = struct.pack("ii", 1, 0)  # closing sends a reset


class Peer:
    """One connection, from the bad side. Whatever it does ends with OSError once the client is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        #: Request line and headers, and what came with them; empty until `hear`.
        self.heard = b""

    @property
    def target(self) -> str:
        """Path and query of the request."""
        return self.heard.split(b" ", 2)[1].decode("latin-1")

    def hear(self) -> None:
        """Read a request's line and headers."""
        while b"\r\n\r\n" not in self.heard:
            block = self.connection.recv(CHUNK)
            if not block:
                raise ConnectionAbortedError
            self.heard += block

    def send(self, data: bytes) -> None:
        """All of it, at once."""
        self.connection.sendall(data)

    def flood(self, block: bytes) -> None:
        """The block for ever, as fast as the client takes it."""
        while True:
            self.connection.sendall(block)

    def drip(self, data: bytes, pause_s: float = 0.1) -> None:
        """The data for ever, again and again, with a pause in seconds after each."""
        while True:
            self.connection.sendall(data)
            time.sleep(pause_s)

    def spell(self, data: bytes, pause_s: float) -> None:
        """The data once, a byte at a time."""
        for at in range(len(data)):
            self.connection.sendall(data[at : at + 1])
            time.sleep(pause_s)

    def hang(self) -> None:
        """Say nothing until the client goes."""
        while self.connection.recv(CHUNK):
            pass

    def hold(self) -> None:
        """Neither read nor write."""
        while True:
            time.sleep(1)
            self.connection.getpeername()

    def drain(self, size: int, pause_s: float = 0.0) -> None:
        """Read this many bytes, with a pause after each read."""
        while size > 0 and (block := self.connection.recv(min(size, CHUNK))):
            size -= len(block)
            time.sleep(pause_s)

    def hear_body(self) -> None:
        """Read the request's body, if it has one."""
        before, _, body = self.heard.partition(b"\r\n\r\n")
        if announced := re.search(rb"\r\ncontent-length: *(\d+)", before, re.IGNORECASE):
            self.drain(int(announced[1]) - len(body))

    def end(self) -> None:
        """Hang up, whatever was said."""
        self.connection.close()

    def reset(self) -> None:
        """Tear the connection down, so that the client sees a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.connection.close()


Behaviour = Callable[[Peer], None]


def by_path(behaviours: Mapping[str, Behaviour]) -> Behaviour:
    """Hear the request, then do what its path asks for; of an unknown one nothing."""

    def play(peer: Peer) -> None:
        peer.hear()
        behaviours[peer.target.partition("?")[0]](peer)

    return play


class HostileServer(Listener):
    """Listens on a port of 127.0.0.1 and lets `behaviour` play each connection, in a thread of its own.

    Args:
        behaviour: what to do with a connection.
        context: TLS is spoken first, if given; without a close_notify at the end.
        port: where; 0: wherever there is room.
    """

    def __init__(self, behaviour: Behaviour, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._behaviour = behaviour
        self._context = context
        self._open: set[socket.socket] = set()
        super().__init__(self._play, port)

    def url(self, target: str) -> str:
        """The address of a path."""
        return f"{'https' if self._context else 'http'}://localhost:{self.port}{target}"

    def close(self) -> None:
        """Accept no more, and end what is open."""
        super().close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _play(self, connection: socket.socket) -> None:
        self._open.add(connection)
        # ValueError: Python's word for a TLS socket that is closed already.
        with contextlib.suppress(OSError, KeyError, ValueError):
            if self._context:
                with self._context.wrap_socket(connection, server_side=True) as inside:
                    self._open.add(inside)
                    self._behaviour(Peer(inside))
            else:
                self._behaviour(Peer(connection))
        self._open.discard(connection)


class DeafServer:
    """A port of 127.0.0.1 whose queue is full: nothing answers who knocks."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._waiting = [socket.socket() for _ in range(3)]
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Self:
        for knock in self._waiting:
            knock.settimeout(0)
            knock.connect_ex(("127.0.0.1", self.port))
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._server, *self._waiting):
            sock.close()
