"""A total deadline for blocking network calls, whatever the peer drips.

Timeouts of sockets hold for one read; a peer that sends a byte a second passes each of them for ever. Here a timer
shuts the sockets themselves. Connections made by `Watched` classes report to the deadline of their thread:

    with Deadline(10) as deadline:
        requests.get(...)      # ends after 10 s at the latest,
        deadline.check()       # with TimeoutError if it was cut off

Inside `cut_when_cancelled` a cancelled task takes the deadlines of its threads along.
"""

import asyncio
import contextlib
import contextvars
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

MOST_ASKED_S = 1e10  # centuries: more cannot be reckoned with

_current: contextvars.ContextVar["Deadline | None"] = contextvars.ContextVar("deadline", default=None)
_of_task: contextvars.ContextVar["set[Deadline] | None"] = contextvars.ContextVar("deadlines", default=None)


class Deadline:
    """Seconds for everything inside the `with` block, in this thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._handles: list[socket.socket] = []
        self._waiting: set[threading.Event] = set()
        self._lock = threading.Lock()
        self._cut = threading.Event()
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._end = time.monotonic() + self.seconds
        self._token = _current.set(self)
        self._siblings = _of_task.get()
        if self._siblings is not None:
            self._siblings.add(self)
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        _current.reset(self._token)
        if self._siblings is not None:
            self._siblings.discard(self)
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()

    @property
    def left(self) -> float:
        """Seconds until the end, never below zero."""
        return 0.0 if self._cut.is_set() else max(0.0, self._end - time.monotonic())

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

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end.

        Raises:
            TimeoutError: the time is up.
        """
        self._cut.wait(min(seconds, self.left))
        self.check()

    @contextlib.contextmanager
    def waking(self, event: threading.Event) -> Iterator[None]:
        """Set the event when the time is up, for whoever waits for it inside."""
        with self._lock:
            self._waiting.add(event)
        # After it is known, as in `guard`.
        if self.passed:
            event.set()
        try:
            yield
        finally:
            with self._lock:
                self._waiting.discard(event)

    def guard(self, connection: socket.socket) -> None:
        """Shut this connection when the time is up.

        Raises:
            TimeoutError: it is up already.
        """
        # A second handle of the same connection; by its number, since a TLS socket refuses to be duplicated.
        number = os.dup(connection.fileno())
        handle = socket.socket(connection.family, connection.type, connection.proto, fileno=number)
        with self._lock:
            self._handles.append(handle)
        # After the handle is known: else the timer could run in between, and never see it.
        self.check()

    def cut(self) -> None:
        """End it now."""
        self._cut.set()
        with self._lock:
            for event in self._waiting:
                event.set()
            for handle in self._handles:
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)


def current() -> Deadline | None:
    """The deadline of this thread, if it is inside one."""
    return _current.get()


@contextlib.contextmanager
def cut_when_cancelled() -> Iterator[None]:
    """When the task inside is cancelled, end the deadlines of threads that run in copies of its context."""
    running: set[Deadline] = set()
    token = _of_task.set(running)
    try:
        yield
    except asyncio.CancelledError:
        for deadline in list(running):
            deadline.cut()
        raise
    finally:
        _of_task.reset(token)


def uncut(function: Callable[..., None], *arguments: object) -> None:
    """Call it in this thread although the task whose context this is may be cancelled."""
    token = _of_task.set(None)
    try:
        function(*arguments)
    finally:
        _of_task.reset(token)


def retry_after(said: str) -> float | None:
    """Seconds from now until a server wants to be asked again, by its Retry-After: a number, or a date.

    What is neither says nothing.
    """
    said = said.strip()
    if re.fullmatch(r"\d+(\.\d*)?", said, re.ASCII):
        return min(float(said), MOST_ASKED_S)
    try:
        then = parsedate_to_datetime(said)
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


class Watched:
    """Mixin of urllib3 connections: each request, on a new socket or a kept one, obeys the thread's deadline."""

    sock: socket.socket | None
    timeout: float | None

    def _new_conn(self) -> socket.socket:
        # What dials guards the socket itself, before it is connected.
        if deadline := current():
            deadline.check()
            self.timeout = min(self.timeout or deadline.left, deadline.left)
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        return sock

    def putrequest(self, *args: Any, **options: Any) -> None:
        """As http.client; the socket may be one that an earlier request left open."""
        if self.sock is not None and (deadline := current()):
            deadline.guard(self.sock)
        super().putrequest(*args, **options)  # type: ignore[misc]
