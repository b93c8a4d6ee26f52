"""How a request is answered that meets a fault: in other words, late, in part, or not at all."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from local.exchange import Exchange, length_of
from local.hostile_server import CHUNK

Play = Callable[[Exchange], None]

DRIP_S = 0.2  # between two bytes
SLOW_S = 3.0  # until a slow server answers
SLOW_READ = 64  # bytes that are taken of an upload, then a pause of DRIP_S
FLOOD = 1024**3  # bytes of an answer without end: who keeps them all is found out before the machine runs out
LONGER = 1000  # bytes that are announced and never come
HTML = b"<!DOCTYPE html><html><body><h1>Sign in</h1><p>to this network.</p></body></html>"
BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE x ['
    + b"".join(b'<!ENTITY e%d "%b">' % (at, b"&e%d;" % (at - 1) * 10 if at else b"0123456789") for at in range(9))
    + b"]><Error><Code>&e8;</Code></Error>"
)


def says(status: str, body: bytes = b"", *headers: str, media: str = "application/xml") -> Play:
    """An answer of its own to a request that was heard to its end; the server learns nothing of it."""
    return lambda exchange: _reply(exchange, status, body, *headers, media=media)


def error(status: str, code: str, *headers: str) -> Play:
    """S3's own words."""
    return says(status, _words(code), *headers)


def _words(code: str) -> bytes:
    said = f"<Error><Code>{code}</Code><Message>so it is</Message><RequestId>1</RequestId></Error>"
    return b'<?xml version="1.0" encoding="UTF-8"?>' + said.encode()


def _reply(exchange: Exchange, status: str, body: bytes, *headers: str, media: str = "application/xml") -> None:
    exchange.body()
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {media}", f"Content-Length: {len(body)}", *headers, "", "")
    exchange.peer.send("\r\n".join(lines).encode() + (b"" if exchange.method == "HEAD" else body))


def later(headers: Callable[[], str]) -> Play:
    """503 with a header that is written in that moment."""
    return lambda exchange: _reply(exchange, "503 Service Unavailable", _words("SlowDown"), headers())


def retry_at(seconds: float) -> Callable[[], str]:
    """Retry-After as a date, so many seconds from now."""
    return lambda: f"Retry-After: {format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)}"


def redirect(status: str) -> Play:
    """To another host."""
    return lambda exchange: _reply(exchange, status, b"", f"Location: http://{exchange.elsewhere}{exchange.path}")


def floods(head: bytes, block: bytes) -> Play:
    """The block again and again, behind the head; and after `FLOOD` bytes nothing, but not the end."""

    def play(exchange: Exchange) -> None:
        exchange.body()
        exchange.peer.send(head)
        piece = block * max(1, CHUNK // len(block))
        for _ in range(FLOOD // len(piece)):
            exchange.peer.send(piece)
        exchange.peer.hang()

    return play


def raw(answer: bytes) -> Play:
    """These bytes, then the end."""

    def play(exchange: Exchange) -> None:
        exchange.body()
        exchange.peer.send(answer)
        exchange.peer.end()

    return play


def rewritten(pattern: bytes, by: bytes) -> Play:
    """The true answer, with another header."""

    def play(exchange: Exchange) -> None:
        head, body = exchange.answer()
        exchange.peer.send(re.sub(pattern, by, head, flags=re.IGNORECASE) + body)

    return play


def reset(exchange: Exchange) -> None:
    """Before the answer."""
    exchange.body()
    exchange.peer.reset()


def reset_in_the_body(exchange: Exchange) -> None:
    """Of the upload if there is one, else of the answer."""
    if exchange.size:
        exchange.hear(exchange.size // 2)
    else:
        head, body = exchange.answer()
        exchange.peer.send(head[: len(head) if body else len(head) // 2] + body[: len(body) // 2])
        time.sleep(DRIP_S)  # a reset overtakes what the other side has not read yet
    exchange.peer.reset()


def hang(exchange: Exchange) -> None:
    """No answer."""
    exchange.body()
    exchange.peer.hang()


def drip(exchange: Exchange) -> None:
    """The true answer, a byte at a time."""
    exchange.peer.spell(b"".join(exchange.answer()), DRIP_S)


def drip_the_body(exchange: Exchange) -> None:
    """The headers at once."""
    head, body = exchange.answer()
    exchange.peer.send(head)
    exchange.peer.spell(body, DRIP_S)


def truncated(exchange: Exchange) -> None:
    """More is announced than comes."""
    head, body = exchange.answer()
    more = b"\r\nContent-Length: %d" % ((length_of(head) or 0) + LONGER)
    exchange.peer.send(re.sub(rb"\r\ncontent-length: *\d+", more, head, flags=re.IGNORECASE) + body)
    exchange.peer.end()


def halved(exchange: Exchange) -> None:
    """Half the answer, headers included if it has no body."""
    head, body = exchange.answer()
    exchange.peer.send(head[: len(head) if body else len(head) // 2] + body[: len(body) // 2])
    exchange.peer.end()


def wrong_bytes(exchange: Exchange) -> None:
    """One bit is another: of an upload on its way to the server, else of the answer's body."""
    if exchange.size:
        exchange.peer.send(b"".join(exchange.answer(flipped(exchange.body(), exchange.size * 4))))
    else:
        head, body = exchange.answer()
        exchange.peer.send(head + flipped(body, len(body) * 4))


def flipped(data: bytes, bit: int) -> bytes:
    """The bytes with one bit turned over; empty ones as they are."""
    changed = bytearray(data)
    if data:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def slow(exchange: Exchange) -> None:
    """The true answer, late."""
    exchange.body()
    time.sleep(SLOW_S)
    exchange.pass_on()


def slow_read(exchange: Exchange) -> None:
    """An upload is taken a few bytes at a time, so that it takes minutes."""
    for size in range(SLOW_READ, exchange.size, SLOW_READ):
        exchange.hear(size, SLOW_READ)
        time.sleep(DRIP_S)
    exchange.pass_on()


def lost(exchange: Exchange) -> None:
    """The server does what it is asked, and the answer gets lost."""
    exchange.answer()
    exchange.peer.reset()
