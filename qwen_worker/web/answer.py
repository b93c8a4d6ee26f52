"""An HTTP answer as a stranger may send it, read without the leniency of the libraries.

They skip what they cannot parse, and then read until the connection ends: a broken-off picture would pass as whole, and
a chunk of -1 bytes as all that the other side cares to send.
"""

import io
import re
import socket
import ssl
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import Any

from urllib3.util.response import assert_header_parsing
from urllib3.util.ssl_ import create_urllib3_context

from qwen_worker.deadlines import current

MAX_HEADER_BYTES = 256 * 1024  # of all answers to one request, those before the last too; as much as Chrome takes

# requests reads them, twice, although none is kept: 250 KB of them can take 97 MB and two seconds.
COOKIES = ("Set-Cookie", "Set-Cookie2")

_LENGTH = re.compile(r"\s*[0-9]{1,18}\s*", re.ASCII)


class Answer(HTTPResponse):
    """Refuses headers from which the end of the body cannot be told for certain, and reads nothing without a limit."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._lines = self.fp = _Bounded(self.fp.detach())

    def begin(self) -> None:
        """As http.client: read status and headers.

        Raises:
            HTTPException, HeaderParsingError: they are malformed, too long, or contradict each other.
        """
        self._lines.left = MAX_HEADER_BYTES
        super().begin()
        self._lines.left = None
        assert_header_parsing(self.msg)
        _check_framing(self.msg)
        for name in COOKIES:
            del self.msg[name]

    def _read_status(self) -> tuple[str, int, str]:
        """As http.client, which skips 100 Continue alone: others may come before the answer too (RFC 9110, 15.2)."""
        version, status, reason = super()._read_status()  # type: ignore[misc] # typeshed leaves it out
        while HTTPStatus.PROCESSING <= status < HTTPStatus.OK:
            while self._lines.readline(MAX_HEADER_BYTES).strip(b"\r\n"):
                pass
            version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, status, reason


class _Bounded(io.BufferedReader):
    """Reads nothing more once the deadline has passed: what the kernel had taken in until then may be megabytes.

    `left` is how many bytes of lines may be read yet; None: any number, if each has a limit of its own.
    """

    left: int | None = None

    def readline(self, size: int | None = -1, /) -> bytes:
        _check_deadline()
        line = super().readline(size)
        if self.left is not None:
            self.left -= len(line)
            if self.left < 0:
                raise HTTPException(f"the headers are longer than {MAX_HEADER_BYTES} bytes")
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise HTTPException("a part of the body has no length")
        _check_deadline()
        return super().read(size)


def _check_deadline() -> None:
    if deadline := current():
        deadline.check()


def _check_framing(headers: HTTPMessage) -> None:
    codings = headers.get_all("Transfer-Encoding", ["chunked"])
    if {coding.strip().lower() for coding in codings} != {"chunked"}:
        raise HTTPException("the transfer coding is not chunked")
    lengths = set(headers.get_all("Content-Length", ["0"]))
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths.pop()):
        raise HTTPException("the length is not one number")


def strict_tls() -> ssl.SSLContext:
    """For a client: urllib3's own settings, but a connection that just ends is an error, as it may have been cut."""
    context = create_urllib3_context()
    # Python 3.11 had it set until 3.11.3.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def end_strictly(sock: socket.socket | None) -> None:
    """Let the end of this connection count only if TLS says so itself. Nothing to do in the clear."""
    if isinstance(sock, ssl.SSLSocket):
        sock.suppress_ragged_eofs = False  # type: ignore[attr-defined] # typeshed leaves it out
