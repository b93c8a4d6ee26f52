"""TLS in front of a local part: a forwarder that ends it, and authorities made on the spot."""

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import trustme

from local.listener import Listener

CHUNK = 65536


class Authority:
    """A certificate authority of this machine; `file` is what a client must trust."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def context(self, *names: str) -> ssl.SSLContext:
        """A server's side of TLS, with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context


class TLSForwarder(Listener):
    """Listens with TLS on a port of the loopback address, and passes everything on to another port in the clear."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self._target = target
        self._context = context
        super().__init__(self._forward)

    def _forward(self, client: socket.socket) -> None:
        inside = self._context.wrap_socket(client, server_side=True)
        with inside, socket.create_connection(("127.0.0.1", self._target)) as outside:
            answers = threading.Thread(target=_pass_on, args=(outside, inside), daemon=True)
            answers.start()
            _pass_on(inside, outside)
            answers.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
