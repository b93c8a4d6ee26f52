"""A server that is far away: a proxy before it lets each request wait."""

import socket
import time
from collections.abc import Callable

from local.exchange import Exchange
from local.hostile_server import HostileServer, Peer


class Distant(HostileServer):
    """Listens on a port of 127.0.0.1. Use it as a context manager.

    Args:
        port: of the real server, on 127.0.0.1.
        wait_s: seconds that a request of a method waits before it is passed on, byte for byte.
    """

    def __init__(self, port: int, wait_s: Callable[[str], float]) -> None:
        self._upstream = port
        self._wait_s = wait_s
        super().__init__(self._pass_on)

    def _pass_on(self, peer: Peer) -> None:
        peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            peer.heard = b""
            peer.hear()
            exchange = Exchange(peer, self._upstream, "")
            time.sleep(self._wait_s(exchange.method))
            exchange.pass_on()
