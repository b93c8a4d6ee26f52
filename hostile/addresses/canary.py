"""Servers on many ports of every address, which tell who was dialled and what came over the wire."""

import base64
import contextlib
import gzip
import re
import selectors
import socket
import ssl
import threading
from collections.abc import Iterable
from urllib.parse import parse_qs, unquote, urlsplit

#: The smallest picture there is: one pixel.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
TLS_PORTS = {443, 8443}
PORTS = {
    21, 22, 23, 25, 69, 80, 81, 88, 110, 111, 135, 139, 143, 389, 443, 445, 873, 1080, 1433, 2049, 2375, 2376, 2379,
    3000, 3128, 3306, 3389, 4040, 4243, 5000, 5432, 5601, 5672, 5900, 5984, 6379, 6443, 7001, 8000, 8001, 8008, 8080,
    8081, 8086, 8088, 8443, 8500, 8888, 9000, 9042, 9090, 9092, 9200, 9300, 9443, 10250, 10255, 11211, 15672, 27017,
    50070,
}  # fmt: skip


class Canary:
    """Listens for the life of the process. `dialled` has the addresses in order, `heads` what was asked of them."""

    def __init__(self, tls: ssl.SSLContext, ports: Iterable[int]) -> None:
        self.dialled: list[tuple[str, int]] = []
        self.heads: list[bytes] = []
        self._tls = tls
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._ear, selectors.EVENT_READ)
        for port in PORTS | set(ports):
            self._selector.register(_listener(port), selectors.EVENT_READ)
        threading.Thread(target=self._accept, daemon=True).start()

    def settle(self) -> None:
        """Return when every connection that was made before is in `dialled`."""
        self._bell.send(b"?")
        self._bell.recv(1)

    def _accept(self) -> None:
        while True:
            ready = [key.fileobj for key, _ in self._selector.select()]
            # Whoever rings has dialled before: one more look at all, then the answer.
            if self._ear in ready:
                ready = [key.fileobj for key, _ in self._selector.select(0)]
            for server in ready:
                if isinstance(server, socket.socket) and server is not self._ear:
                    self._take(server)
            if self._ear in ready:
                self._ear.send(self._ear.recv(1))

    def _take(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                place, port = client.getsockname()[:2]
                self.dialled.append((place.removeprefix("::ffff:") if "." in place else place, port))
                threading.Thread(target=self._serve, args=(client, place, port), daemon=True).start()

    def _serve(self, client: socket.socket, place: str, port: int) -> None:
        with contextlib.suppress(OSError, ValueError), client:
            client.settimeout(5)
            with self._tls.wrap_socket(client, server_side=True) if port in TLS_PORTS else client as connection:
                head = _head(connection)
                self.heads.append(head)
                connection.sendall(_answer(head, place))


def _listener(port: int) -> socket.socket:
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
    server.settimeout(0)
    return server


def _head(connection: socket.socket) -> bytes:
    head = bytearray()
    while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
        head += data
    return bytes(head.partition(b"\r\n\r\n")[0])


def _answer(head: bytes, place: str) -> bytes:
    target = head.partition(b"\r\n")[0].partition(b" ")[2].rpartition(b" HTTP/")[0].decode("latin-1")
    address = urlsplit(target)
    asked = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
    if address.path == "/redir":
        return _reply(int(asked.get("code", 302)), f"canary {place}".encode(), Location=asked.get("to", ""))
    if address.path == "/redirraw":
        return _reply(302, b"", Location=unquote(re.sub(r".*?[?&]to=", "", target, count=1)))
    if address.path == "/chain":
        left = int(asked["n"]) - 1
        further = re.sub(r"n=\d+", f"n={left}", target) if left >= 0 else asked.get("to", "")
        return _reply(302, b"", Location=further)
    if address.path.endswith("/gz.png"):
        return _reply(200, gzip.compress(PICTURE), **{"Content-Encoding": "gzip"})
    return _reply(200, PICTURE if address.path.endswith("/img.png") else f"canary {place}".encode())


def _reply(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Canary", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
