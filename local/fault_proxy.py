"""A proxy before the bucket whose faults are set and taken away while it runs.

What no fault meets is passed on byte for byte, so that signatures hold: they cover the Host that the worker dialled.
"""

import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

from local import fault_kinds
from local.exchange import Exchange
from local.hostile_server import HostileServer, Peer

#: the kind that is no answer: who asks is cut off, and from then on nobody listens
REFUSED = "refused"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with some requests.

    Attributes:
        kind: one of `local.fault_kinds.KINDS`, or `REFUSED`.
        methods: that it meets.
        key: a pattern that is searched in the key, as "sources/" or "manifest".
        times: how many of them it meets, the first ones; None: all.
    """

    kind: str
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT")
    key: str = ""
    times: int | None = None

    def meets(self, method: str, key: str) -> bool:
        """Whether a request is one of those."""
        return method in self.methods and re.search(self.key, key) is not None


@dataclass(frozen=True)
class Asked:
    """A request as it came: `key` is the path without the bucket, `at` a time of `time.monotonic`."""

    method: str
    key: str
    at: float
    fault: str | None


class FaultProxy:
    """Listens on 127.0.0.1 from its making on; use it as a context manager, or `close` it.

    Args:
        port: of the real server, on 127.0.0.1.

    Attributes:
        asked: every request, in the order in which they came.
        elsewhere: host:port that no request must reach: redirects lead there.
        strayed: how many connections were made to it all the same.
    """

    def __init__(self, port: int) -> None:
        self.asked: list[Asked] = []
        self.strayed = 0
        self._upstream = port
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._left = 0
        self._canary = HostileServer(self._stray)
        self.elsewhere = f"127.0.0.1:{self._canary.port}"
        self._server: HostileServer | None = HostileServer(self._serve)
        self.port = self._server.port

    @property
    def host(self) -> str:
        """host:port: what S3_ENDPOINT is."""
        return f"127.0.0.1:{self.port}"

    @property
    def fault(self) -> Fault | None:
        """What goes wrong; None: nothing. Setting it begins anew: who listened no more listens again."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        if fault and fault.kind not in {*fault_kinds.KINDS, REFUSED}:
            raise ValueError(f"no such fault: {fault.kind}")
        with self._lock:
            self._fault, self._left = fault, -1 if fault is None or fault.times is None else fault.times
        self.up()

    def count(self, key: str = "", *methods: str) -> int:
        """How many requests with such a key came; with these methods, or any."""
        return len(self.met(key, *methods))

    def met(self, key: str = "", *methods: str) -> list[Asked]:
        """Those requests."""
        asked = list(self.asked)
        return [one for one in asked if re.search(key, one.key) and (not methods or one.method in methods)]

    def down(self) -> None:
        """Cut off who is there, and refuse connections."""
        with self._lock:
            server, self._server = self._server, None
        if server:
            server.close()

    def up(self) -> None:
        """Listen again."""
        with self._lock:
            self._server = self._server or HostileServer(self._serve, port=self.port)

    def close(self) -> None:
        """Accept no more, and end what is open."""
        self.down()
        self._canary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stray(self, _peer: Peer) -> None:
        self.strayed += 1

    def _serve(self, peer: Peer) -> None:
        peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            peer.heard = b""
            peer.hear()
            exchange = Exchange(peer, self._upstream, self.elsewhere)
            kind = self._kind(exchange)
            if kind == REFUSED:
                self.down()
            elif kind:
                fault_kinds.KINDS[kind](exchange)
            else:
                exchange.pass_on()

    def _kind(self, exchange: Exchange) -> str | None:
        """Of the fault that meets this request, which is noted."""
        key = unquote(exchange.path).lstrip("/").partition("/")[2]
        with self._lock:
            kind = None
            if self._fault and self._left and self._fault.meets(exchange.method, key):
                self._left -= 1
                kind = self._fault.kind
            self.asked.append(Asked(exchange.method, key, time.monotonic(), kind))
        return kind
