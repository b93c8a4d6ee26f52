"""What a bucket, or what stands before it, may answer instead of the truth: kinds of faults by their names."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from local.exchange import Exchange, length_of

Play = Callable[[Exchange], None]

DRIP_S = 0.2  # between two bytes
SLOW_S = 3.0  # until a slow server answers
SLOW_READ = 64  # bytes that are taken of an upload, then a pause of DRIP_S
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
    """The block for ever, behind the head."""

    def play(exchange: Exchange) -> None:
        exchange.body()
        exchange.peer.send(head)
        exchange.peer.flood(block)

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


HEAD = b"HTTP/1.1 %b\r\nContent-Type: application/xml\r\n"
OVERLOADED = "503 Service Unavailable"
#: name → what happens
KINDS: dict[str, Play] = {
    "503": error(OVERLOADED, "SlowDown"),
    "503, Retry-After 1": error(OVERLOADED, "SlowDown", "Retry-After: 1"),
    "503, Retry-After 3600": error(OVERLOADED, "SlowDown", "Retry-After: 3600"),
    "503, Retry-After a near date": later(retry_at(2)),
    "503, Retry-After a far date": later(retry_at(3600)),
    "503, Retry-After a past date": later(retry_at(-3600)),
    "503, Retry-After nonsense": error(OVERLOADED, "SlowDown", "Retry-After: soon"),
    "503, Retry-After negative": error(OVERLOADED, "SlowDown", "Retry-After: -1"),
    "503 without words": says(OVERLOADED),
    "429": error("429 Too Many Requests", "TooManyRequests"),
    "429, Retry-After 1": error("429 Too Many Requests", "TooManyRequests", "Retry-After: 1"),
    "408": error("408 Request Timeout", "RequestTimeout"),
    "500": error("500 Internal Server Error", "InternalError"),
    "502": says("502 Bad Gateway", HTML, media="text/html"),
    "504": says("504 Gateway Timeout", HTML, media="text/html"),
    "400": error("400 Bad Request", "InvalidRequest"),
    "400, of a time-out": error("400 Bad Request", "RequestTimeout"),
    "400, of bytes that did not arrive": error("400 Bad Request", "IncompleteBody"),
    "403": error("403 Forbidden", "AccessDenied"),
    "403, a page": says("403 Forbidden", HTML, media="text/html"),
    "403, of a clock": error("403 Forbidden", "RequestTimeTooSkewed"),
    "404": error("404 Not Found", "NoSuchKey"),
    "404, of the bucket": error("404 Not Found", "NoSuchBucket"),
    "404, a page": says("404 Not Found", HTML, media="text/html"),
    "405": error("405 Method Not Allowed", "MethodNotAllowed"),
    "409, of another operation": error("409 Conflict", "OperationAborted"),
    "412": error("412 Precondition Failed", "PreconditionFailed"),
    "501": error("501 Not Implemented", "NotImplemented"),
    "301 elsewhere": redirect("301 Moved Permanently"),
    "302 elsewhere": redirect("302 Found"),
    "307 elsewhere": redirect("307 Temporary Redirect"),
    "308 elsewhere": redirect("308 Permanent Redirect"),
    "204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "206": says("206 Partial Content", HTML, "Content-Range: bytes 0-79/100000"),
    "304": raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "empty 200": says("200 OK"),
    "bad XML, 200": says("200 OK", b"<Error><Code>InternalErr"),
    "bad XML, 500": says("500 Internal Server Error", b"<Error><Code>InternalErr"),
    "an error, 200": error("200 OK", "InternalError"),
    "a page, 200": says("200 OK", HTML, media="text/html"),
    "an XML bomb": says("500 Internal Server Error", BOMB),
    "no code": says("500 Internal Server Error", b"<Error></Error>"),
    "another document": says("403 Forbidden", b"<ListBucketResult/>"),
    "reset before the answer": reset,
    "reset in the body": reset_in_the_body,
    "end before the answer": raw(b""),
    "nonsense": raw(b"nonsense\r\n\r\n"),
    "half an answer": halved,
    "truncated body": truncated,
    "wrong bytes": wrong_bytes,
    "wrong digest": rewritten(rb"(\r\nx-amz-meta-sha256: *)\S*", rb"\g<1>" + b"0" * 64),
    "no digest": rewritten(rb"\r\nx-amz-meta-sha256: *\S*", b""),
    "two lengths": rewritten(rb"(\r\ncontent-length: *\d+)", rb"\g<1>\r\nContent-Length: 1"),
    "a negative length": rewritten(rb"(\r\ncontent-length:) *\d+", rb"\g<1> -1"),
    "said to be packed": rewritten(rb"\r\nserver:[^\r]*", b"\r\nContent-Encoding: gzip"),
    "the answer gets lost": lost,
    "slow": slow,
    "hang": hang,
    "drip": drip,
    "drip of the body": drip_the_body,
    "slow read": slow_read,
    "chunked without end": floods(
        HEAD % b"200 OK" + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"
    ),
    "an error without end": floods(HEAD % b"500 No" + b"\r\n<Error><Code>", b"x" * 65536),
    "headers without end": floods(HEAD % b"200 OK", b"X-More: headers\r\n"),
    "100 Continue without end": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
