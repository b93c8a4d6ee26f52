"""Name look-up that ends with the thread's deadline: `socket.getaddrinfo` itself waits as long as it likes."""

import contextlib
import queue
import socket
import threading
from concurrent.futures import Future
from typing import Any

from qwen_worker.deadlines import current

#: Name servers that are silent hold a thread each until the system gives them up, which nobody can hasten.
MOST = 32
#: For callers without a deadline, and for patient ones: by then the system has asked three servers twice.
TIMEOUT_S = 30.0

Found = list[Any]


class LookUpTimeoutError(Exception):
    """No name server answered."""


def look_up(host: str, port: int) -> Found:
    """As `socket.getaddrinfo` lists it for TCP; an address is read at once and by nobody else.

    Raises:
        OSError: there is no such name; as TimeoutError, the thread's deadline passed.
        LookUpTimeoutError: no name server answered.
        UnicodeError: it cannot be a name.
    """
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return _awaited(_POOL.ask(host, port))


def _awaited(answer: "Future[Found]") -> Found:
    done, deadline = threading.Event(), current()
    answer.add_done_callback(lambda _: done.set())
    with deadline.waking(done) if deadline else contextlib.nullcontext():
        done.wait(TIMEOUT_S)
    # Nobody waits any more: if its turn has not come yet, it need not come.
    answer.cancel()
    if deadline:
        deadline.check()
    if not answer.done() or answer.cancelled():
        raise LookUpTimeoutError
    return answer.result()


class _Pool:
    """Daemon threads, so that a stuck one holds no exit up; made when they are needed, `most` at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._asked: queue.SimpleQueue[tuple[Future[Found], str, int]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads = 0

    def ask(self, host: str, port: int) -> "Future[Found]":
        answer: Future[Found] = Future()
        self._asked.put((answer, host, port))
        with self._lock:
            if not self._idle.acquire(blocking=False) and self._threads < self._most:
                self._grow()
        return answer

    def _grow(self) -> None:
        try:
            threading.Thread(target=self._work, name=f"lookup-{self._threads + 1}", daemon=True).start()
        except RuntimeError as error:  # the system gives no more
            if not self._threads:
                raise LookUpTimeoutError from error
        else:
            self._threads += 1

    def _work(self) -> None:
        while True:
            answer, host, port = self._asked.get()
            if answer.set_running_or_notify_cancel():
                _settle(answer, host, port)
            self._idle.release()


def _settle(answer: "Future[Found]", host: str, port: int) -> None:
    try:
        answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, ValueError) as error:
        answer.set_exception(error)


_POOL = _Pool(MOST)
