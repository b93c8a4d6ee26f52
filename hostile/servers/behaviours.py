"""What a hostile server can do with one connection, and what it says."""

import gzip
import time
import zlib
from collections.abc import Callable
from functools import cache

import brotli

from local.hostile_server import CHUNK, Behaviour, Peer

MAX_BYTES = 26_214_400
TIMEOUT_S = 8.0
PICTURE = bytes(range(256)) * 256
CUT = PICTURE[:-1000]
BLOCK = b"x" * CHUNK
BOMB_BYTES = 64 * 1024**2
SIZE = b"Content-Length: %d" % len(PICTURE)
CHUNKED = b"Transfer-Encoding: chunked"
FIRST_CHUNK = b"%x\r\n%b\r\n" % (len(PICTURE), PICTURE)
LARGEST = BLOCK * (MAX_BYTES // CHUNK)


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    """Status line and headers."""
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"", b""))


def says(*parts: bytes) -> Behaviour:
    """These bytes, then the end."""
    return lambda peer: peer.send(b"".join(parts))


def floods(before: bytes, block: bytes) -> Behaviour:
    """The block for ever."""
    # Larger pieces, so that the server is not the slow one.
    piece = block * max(1, CHUNK // len(block))

    def play(peer: Peer) -> None:
        peer.send(before)
        peer.flood(piece)

    return play


def drips(before: bytes, drop: bytes, pause_s: float = 0.1) -> Behaviour:
    """The drop for ever, with pauses."""

    def play(peer: Peer) -> None:
        peer.send(before)
        peer.drip(drop, pause_s)

    return play


def leads(location: bytes, *lines: bytes) -> bytes:
    """A redirect."""
    return head(b"Location: " + location, *(lines or (b"Content-Length: 0",)), status=b"302 Found")


def after(seconds: float, behaviour: Behaviour) -> Behaviour:
    """The same, later."""

    def play(peer: Peer) -> None:
        time.sleep(seconds)
        behaviour(peer)

    return play


def then(*behaviours: Behaviour) -> Behaviour:
    """One after the other."""

    def play(peer: Peer) -> None:
        for behaviour in behaviours:
            behaviour(peer)

    return play


def spells(data: bytes, pause_s: float) -> Behaviour:
    """These bytes one at a time."""
    return lambda peer: peer.spell(data, pause_s)


def grows(peer: Peer) -> None:
    """A redirect to itself with a longer query each time."""
    peer.send(leads(peer.target.encode() + b"?" + b"x" * 2000))


def resets(before: bytes) -> Behaviour:
    """These bytes, then a reset."""

    def play(peer: Peer) -> None:
        peer.send(before)
        time.sleep(0.2)
        peer.reset()

    return play


def ends_its_half(before: bytes) -> Behaviour:
    """These bytes, then no more will come; but the connection stays."""

    def play(peer: Peer) -> None:
        peer.send(before)
        peer.connection.shutdown(1)
        peer.hang()

    return play


@cache
def bomb(encoding: str) -> bytes:
    """64 MiB of zeros, packed."""
    pack: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}
    return pack[encoding](bytes(BOMB_BYTES))


def packed(encoding: str, *lines: bytes, times: int = 1, twice: bool = False) -> Behaviour:
    """A bomb that is packed on the first call: most runs need only some."""

    def play(peer: Peer) -> None:
        once = bomb(encoding)
        body = gzip.compress(once * times) if twice else once * times
        peer.send(head(*lines, b"Content-Length: %d" % len(body)) + body)

    return play


def zipped(*lines: bytes) -> Behaviour:
    """The picture in gzip, declared in some form."""
    body = gzip.compress(PICTURE)
    return says(head(*lines, b"Content-Length: %d" % len(body)), body)


#: As many headers, as long, as http.client takes.
MOST_HEADERS = b"".join(b"X-%02d: %b\r\n" % (at, b"y" * 65_000) for at in range(95))
