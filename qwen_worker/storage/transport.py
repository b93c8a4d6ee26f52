"""How the bucket is reached: connections that keep to the thread's deadline, and hear no more than it should say."""

import contextvars
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead
from typing import Any

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context

from qwen_worker.deadlines import Deadline, Watched
from qwen_worker.web.answer import Answer
from qwen_worker.web.dial import connect
from qwen_worker.web.lookup import LookUpTimeoutError, look_up

#: Of what minio-py reads whole: errors, and what acknowledges a write.
MAX_WORDS = 64 * 1024
PIECE = 64 * 1024
_READS = {"GET", "HEAD"}
_PARTIAL = {HTTPStatus.NO_CONTENT, HTTPStatus.PARTIAL_CONTENT}


@dataclass
class Exchange:
    """One request, and what is heard of its answer.

    Attributes:
        timeout_s: seconds of one read, one piece that is sent, one look-up, or one address that is dialled.
        status: of the answer, as soon as there is one.
        retry_after: the header.
    """

    timeout_s: float
    status: int | None = None
    retry_after: str | None = None


_current: contextvars.ContextVar[Exchange] = contextvars.ContextVar("exchange")


@contextmanager
def exchange(timeout_s: float) -> Iterator[Exchange]:
    """The request that this thread makes inside: the libraries between have no place for either."""
    token = _current.set(Exchange(timeout_s))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


class Pools(urllib3.PoolManager):
    """Connections, kept open. Each request is made once, in an `exchange`, and no redirect is followed.

    Args:
        ca_file: certificates of the authorities to trust; default: those of certifi.
    """

    def __init__(self, ca_file: str | None) -> None:
        context = create_urllib3_context()
        context.load_verify_locations(ca_file or certifi.where())
        super().__init__(maxsize=16, retries=False, ssl_context=context)
        self.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}

    def urlopen(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        """As urllib3.PoolManager.urlopen."""
        return super().urlopen(method, url, timeout=_current.get().timeout_s, **options)


class _Said(Answer):
    """An answer of which only a GET's own body may be long."""

    def begin(self) -> None:
        super().begin()
        heard = _current.get()
        heard.status, heard.retry_after = self.status, self.msg["Retry-After"]
        # Nothing is ever packed here, and few bytes can be made to unpack to many.
        del self.msg["Content-Encoding"]
        if self._method in _READS and self.status in _PARTIAL:  # type: ignore[attr-defined] # typeshed leaves it out
            raise HTTPException("not the whole object")

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        words = super().read(MAX_WORDS + 1)
        if len(words) > MAX_WORDS:
            raise HTTPException(f"longer than {MAX_WORDS} bytes")
        if self.length:
            raise IncompleteRead(words, self.length)
        return words


class _Dialer:
    """Mixin of urllib3's connections."""

    response_class: Any = _Said
    host: str
    port: int
    timeout: Any
    _dns_host: str

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        try:
            with Deadline(self.timeout):
                found = look_up(self._dns_host.strip("[]"), self.port)
        except (LookUpTimeoutError, OSError) as error:
            raise NameResolutionError(self.host, connection, socket.gaierror(str(error))) from error
        try:
            sock = connect(found, self.timeout)
        except OSError as error:
            raise NewConnectionError(connection, str(error)) from error
        # Else a small body waits until its headers are acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def send(self, data: Any) -> None:
        """In pieces: a socket's timeout holds for all that is sent at once."""
        whole = memoryview(data)
        for at in range(0, len(whole), PIECE):
            super().send(whole[at : at + PIECE])  # type: ignore[misc]


class _Plain(Watched, _Dialer, HTTPConnection):
    pass


class _Secure(Watched, _Dialer, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure
