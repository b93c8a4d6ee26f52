"""A total deadline for blocking network calls, whatever the peer drips.

Timeouts of sockets hold for one read; a peer that sends a byte a second passes each of them for ever. Here a timer
shuts the sockets themselves. Connections made by `Watched` classes report to the deadline of their thread:

    with Deadline(10) as deadline:
        requests.get(...)      # ends after 10 s at the latest,
        deadline.check()       # with TimeoutError if it was cut off
"""

import contextlib
import contextvars
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_current: contextvars.ContextVar["Deadline | None"] = contextvars.ContextVar("deadline", default=None)


class Deadline:
    """Seconds for everything inside the `with` block, in this thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._handles: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._end = time.monotonic() + self.seconds
        self._token = _current.set(self)
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        _current.reset(self._token)
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()

    @property
    def left(self) -> float:
        """Seconds until the end, never below zero."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self.left == 0

    def check(self) -> None:
        """Call it last: a shut connection can look like the regular end of headers or of a body.

        Raises:
            TimeoutError: the time is up.
        """
        if self.passed:
            raise TimeoutError(f"deadline of {self.seconds} s passed")

    def guard(self, connection: socket.socket) -> None:
        """Shut this connection when the time is up.

        Raises:
            TimeoutError: it is up already.
        """
        self.check()
        # A second handle of the same connection: it survives the wrapping in TLS.
        with self._lock:
            self._handles.append(connection.dup())

    def _shut(self) -> None:
        with self._lock:
            for handle in self._handles:
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)


def current() -> Deadline | None:
    """The deadline of this thread, if it is inside one."""
    return _current.get()


class Watched:
    """Mixin of urllib3 connections: each request, on a new socket or a kept one, obeys the thread's deadline."""

    sock: socket.socket | None

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        if deadline := current():
            deadline.guard(sock)
        return sock

    def putrequest(self, *args: Any, **options: Any) -> None:
        """As http.client; the socket may be one that an earlier request left open."""
        if self.sock is not None and (deadline := current()):
            deadline.guard(self.sock)
        super().putrequest(*args, **options)  # type: ignore[misc]


class _WatchedHTTP(Watched, HTTPConnection):
    pass


class _WatchedHTTPS(Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPS


#: For `urllib3.PoolManager.pool_classes_by_scheme`.
WATCHED_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}
