"""An image host on the loopback address whose answers are set from outside, and which remembers its requests."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True)
class Reply:
    """What one path answers, after `delay_s`. `script` takes over after the request line and headers were read."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    script: Callable[[BaseHTTPRequestHandler], None] | None = None


class ImageHost:
    """A web server in a thread.

    `replies` maps targets (path and query) to answers; `requests` and `headers` list what was asked, `uploads` maps
    targets to the bodies that were PUT there. A PUT without a reply is answered with 200, and a script of one reads the
    body itself.
    """

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.requests: list[str] = []
        self.headers: list[Message] = []
        self.uploads: dict[str, bytes] = {}
        self._server = _Server(self)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def url(self, target: str) -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.port}{target}"

    def put(self, target: str, body: bytes, **headers: str) -> str:
        """Serve a file at a path, and return its address."""
        self.replies[target] = Reply(body, headers=headers)
        return self.url(target)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        self._give(self._asked(Reply(b"no such picture", 404)))

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def do_PUT(self) -> None:
        reply = self._asked(Reply())
        if not reply.script:
            self.server.host.uploads[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._give(reply)

    def _asked(self, default: Reply) -> Reply:
        host = self.server.host
        host.requests.append(self.path)
        host.headers.append(self.headers)
        return host.replies.get(self.path, default)

    def _give(self, reply: Reply) -> None:
        time.sleep(reply.delay_s)
        if reply.script:
            self.close_connection = True
            reply.script(self)
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: ImageHost) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = host

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what many tests are about."""
