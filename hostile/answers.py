"""What a hostile server answers to a GET in the clear: one function a name, which is also the path."""

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

CLASSIC: dict[str, Behaviour] = {
    "hang": Peer.hang,
    "header drip": drips(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "body drip": drips(head(SIZE), b"x"),
    "chunk drip": drips(head(CHUNKED), b"1\r\nx\r\n"),
    "endless body": floods(head(), BLOCK),
    "short body": says(head(SIZE), CUT),
    "gzip 64 MB": packed("gzip", b"Content-Encoding: gzip"),
    "gzip 2 GiB": packed("gzip", b"Content-Encoding: gzip", times=32),
    "gzip in gzip": packed("gzip", b"Content-Encoding: gzip, gzip", times=32, twice=True),
    "header flood": floods(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "50 MB header": says(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 50_000_000, b"\r\n\r\n"),
    "endless 100-continue": floods(b"", head(status=b"100 Continue")),
    "redirect loop": says(leads(b"/redirect-loop")),
    "growing redirect": grows,
    "reset": resets(head(SIZE) + CUT),
    "bad chunk": says(head(CHUNKED), b"nonsense\r\n", PICTURE),
    "huge chunk": floods(head(CHUNKED) + b"FFFFFFFFFFFF\r\n", BLOCK),
    "slow redirects": after(3, says(leads(b"/slow-redirects"))),
    "endless 3xx body": floods(leads(b"/good", b"X: y"), BLOCK),
    "500 drip": drips(head(SIZE, status=b"500 Oh"), b"x"),
    "empty": says(head(b"Content-Length: 0")),
    "close": says(),
    "junk": says(b"\x16\x03\x00nonsense\r\n\r\n" * 100),
    "HTTP/0.9": says(PICTURE),
}

CHUNKS: dict[str, Behaviour] = {
    "chunk extension without end": floods(head(CHUNKED) + b"1;", BLOCK),
    "chunk extensions flood": floods(head(CHUNKED), b"1;" + b"e" * 60_000 + b"\r\nx\r\n"),
    "one-byte chunks flood": floods(head(CHUNKED), b"1\r\nx\r\n"),
    "trailer drip": drips(head(CHUNKED) + FIRST_CHUNK + b"0\r\n", b"X: y\r\n"),
    "trailer flood": floods(head(CHUNKED) + FIRST_CHUNK + b"0\r\n", b"X: y\r\n"),
    "trailer line without end": floods(head(CHUNKED) + FIRST_CHUNK + b"0\r\nX: ", BLOCK),
    "chunk of -1 bytes": floods(head(CHUNKED) + b"-1\r\n", BLOCK),
    "chunk of -1 bytes after a good one": floods(head(CHUNKED) + FIRST_CHUNK + b"-1\r\n", BLOCK),
    "chunk of -5 bytes": floods(head(CHUNKED) + b"-5\r\n", BLOCK),
    "chunk size of 60,000 digits": floods(head(CHUNKED) + b"F" * 60_000 + b"\r\n", BLOCK),
    "chunk size of 2^64": floods(head(CHUNKED) + b"10000000000000000\r\n", BLOCK),
    "chunk size with underscore": says(head(CHUNKED), b"1_0\r\n", PICTURE[:16], b"\r\n0\r\n\r\n"),
    "chunk size empty": says(head(CHUNKED), b"\r\n", PICTURE),
    "chunks without end": says(head(CHUNKED), FIRST_CHUNK),
    "chunk cut": says(head(CHUNKED), FIRST_CHUNK[:-1000]),
    "chunk longer than its size": says(head(CHUNKED), b"10\r\n", PICTURE, b"\r\n0\r\n\r\n"),
    "chunks under HTTP/1.0": says(b"HTTP/1.0 200 OK\r\n", CHUNKED, b"\r\n\r\n", FIRST_CHUNK, b"0\r\n\r\n"),
    "gzip, chunked": says(head(b"Transfer-Encoding: gzip, chunked"), b"%x\r\n" % len(CUT), CUT, b"\r\n0\r\n\r\n"),
    "chunked, chunked": says(head(b"Transfer-Encoding: chunked, chunked"), FIRST_CHUNK[:-2], b"\r\n0\r\n\r\n"),
    "Transfer-Encoding: gzip": says(head(b"Transfer-Encoding: gzip"), CUT),
    "Transfer-Encoding: xchunked": says(head(b"Transfer-Encoding: xchunked"), FIRST_CHUNK, b"0\r\n\r\n"),
    "Transfer-Encoding twice": says(head(b"Transfer-Encoding: x", CHUNKED), FIRST_CHUNK, b"0\r\n\r\n"),
    "Transfer-Encoding folded": says(head(b"Transfer-Encoding:\r\n chunked"), FIRST_CHUNK, b"0\r\n\r\n"),
    "Transfer-Encoding after a NUL": says(head(b"Transfer-Encoding: \0chunked"), FIRST_CHUNK, b"0\r\n\r\n"),
}

LENGTHS: dict[str, Behaviour] = {
    "length -1, cut": says(head(b"Content-Length: -1"), CUT),
    "length -1, endless": floods(head(b"Content-Length: -1"), BLOCK),
    "length of 30 digits": says(head(b"Content-Length: 1" + b"0" * 29), PICTURE),
    "length of 5,000 digits": says(head(b"Content-Length: 1" + b"0" * 4999), CUT),
    "length with a letter": says(head(SIZE + b"x"), CUT),
    "length with underscore": says(head(b"Content-Length: 1_0"), CUT),
    "length in hex": says(head(b"Content-Length: %#x" % len(PICTURE)), CUT),
    "lengths that differ": says(head(SIZE, b"Content-Length: 10"), PICTURE),
    "lengths that differ, small first": says(head(b"Content-Length: 10", SIZE), PICTURE),
    "lengths in a list": says(head(b"Content-Length: 10, %d" % len(PICTURE)), PICTURE),
    "length twice, cut": says(head(SIZE, SIZE), CUT),
    "length smaller than the chunks": says(head(b"Content-Length: 10", CHUNKED), FIRST_CHUNK, b"0\r\n\r\n"),
    "length beside chunks, cut": says(head(b"Content-Length: 10", CHUNKED), FIRST_CHUNK[:-500]),
    "length folded, cut": says(head(b"Content-Length:\r\n %d" % len(PICTURE)), CUT),
    "length after a line without colon, cut": says(head(b"no colon here", SIZE), CUT),
    "chunks after a line without colon": says(head(b"no colon here", CHUNKED), FIRST_CHUNK, b"0\r\n\r\n"),
    "length after an empty name, cut": says(head(b": y", SIZE), CUT),
    "length with a space before the colon, cut": says(head(SIZE.replace(b":", b" :")), CUT),
    "length behind a lone CR, cut": says(head(b"X: y\r" + SIZE), CUT),
    "length after a NUL in a name, cut": says(head(b"X\0Y: z", SIZE), CUT),
    "length after a From line, cut": says(b"HTTP/1.1 200 OK\r\nFrom me\r\n", SIZE, b"\r\n\r\n", CUT),
}

HEADERS: dict[str, Behaviour] = {
    "status line without end": floods(b"HTTP/1.1 200 ", BLOCK),
    "status line drip": drips(b"HTTP/1.1 200 ", b"x"),
    "status 999": says(head(SIZE, status=b"999 Oh"), PICTURE),
    "status -200": says(head(SIZE, status=b"-200 OK"), PICTURE),
    "status of 5,000 digits": says(head(SIZE, status=b"2" * 5000), PICTURE),
    "HTTP/2 in letters": says(b"HTTP/2 200 OK\r\n", SIZE, b"\r\n\r\n", CUT),
    "101": floods(head(b"Upgrade: x", status=b"101 Switching Protocols"), BLOCK),
    "102 flood": floods(b"", head(status=b"102 Processing")),
    "103 flood": floods(b"", head(b"Link: </x>", status=b"103 Early Hints")),
    "100 flood of the most headers": floods(b"", b"HTTP/1.1 100 Continue\r\n" + MOST_HEADERS + b"\r\n"),
    "100 drip": drips(b"", head(status=b"100 Continue")),
    "most headers": says(b"HTTP/1.1 200 OK\r\n", MOST_HEADERS, SIZE, b"\r\n\r\n", CUT),
    "most headers at each hop": says(b"HTTP/1.1 302 Found\r\nLocation: /most-headers\r\n", MOST_HEADERS, b"\r\n"),
    "100,000 headers": says(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100_000, b"\r\n"),
    "folds without end": floods(b"HTTP/1.1 200 OK\r\nX: y\r\n", b" fold\r\n"),
    "204 with a body": says(head(SIZE, status=b"204 No Content"), PICTURE),
    "206": says(head(b"Content-Range: bytes 0-9/100", b"Content-Length: 10", status=b"206 Part"), PICTURE[:10]),
    "304": says(head(status=b"304 Not Modified")),
    "half-closed at once": ends_its_half(b""),
    "half-closed in the headers": ends_its_half(b"HTTP/1.1 200 OK\r\nX: y\r\n"),
    "half-closed in the body": ends_its_half(head(SIZE) + CUT),
    "first byte after the deadline": after(TIMEOUT_S + 0.2, says(head(SIZE), PICTURE)),
    "last byte after the deadline": lambda peer: (
        peer.send(head(SIZE) + PICTURE[:-1]),
        after(TIMEOUT_S + 0.2, says(PICTURE[-1:]))(peer),
    )[1],
    "one byte a read": lambda peer: peer.spell(head(SIZE) + PICTURE, 0.001),
    "headers only, then a hang": lambda peer: (peer.send(head(SIZE)), peer.hang())[1],
}

REDIRECTS: dict[str, Behaviour] = {
    "redirects that drip": drips(leads(b"/redirects-that-drip", SIZE), b"x"),
    "Location drip": drips(b"HTTP/1.1 302 Found\r\nLocation: /", b"x"),
    "Location of 60,000 bytes": says(leads(b"/" + b"x" * 60_000)),
    "Location that is garbage": says(leads(b"http://[::1/%%%\xff\xfe")),
    "Location with a NUL": says(leads(b"/\0good")),
    "Location with a bad port": says(leads(b"http://127.0.0.1:99999999/")),
    "Location without a host": says(leads(b"http:///good")),
    "Location to a socket": says(leads(b"unix:///run/x.sock")),
    "95 Locations": says(leads(b"/nowhere", *[b"Location: /good"] * 95)),
    "10,000 Locations": says(leads(b"/good", *[b"Location: /good"] * 10_000)),
    "redirect in chunks without end": floods(leads(b"/redirect-in-chunks-without-end", CHUNKED) + b"-1\r\n", BLOCK),
    "redirect of 100s": floods(head(status=b"100 Continue") * 1000, leads(b"/redirect-of-100s")),
    "redirect without Location": floods(head(status=b"302 Found"), BLOCK),
}

ENCODINGS: dict[str, Behaviour] = {
    "deflate 64 MB": packed("deflate", b"Content-Encoding: deflate"),
    "br 64 MB": packed("br", b"Content-Encoding: br"),
    "zstd": says(head(b"Content-Encoding: zstd"), b"\x28\xb5\x2f\xfd" + CUT),
    "zip with spaces": zipped(b"Content-Encoding:   gzip  "),
    "identity, gzip": zipped(b"Content-Encoding: identity, gzip"),
    "identity and gzip": zipped(b"Content-Encoding: identity", b"Content-Encoding: gzip"),
    "x-gzip": zipped(b"Content-Encoding: x-gzip"),
    "GZIP": zipped(b"Content-Encoding: GZIP"),
    "encoding folded": zipped(b"Content-Encoding:\r\n gzip"),
    "encoding of 1,000 layers": zipped(b"Content-Encoding: " + b", ".join([b"gzip"] * 1000)),
    "encoding without name": zipped(b"Content-Encoding: x"),
}

SIZES: dict[str, Behaviour] = {
    "one byte over": says(head(b"Content-Length: %d" % (MAX_BYTES + 1)), LARGEST, b"x"),
    "one byte over, in chunks": says(head(CHUNKED), b"%x\r\n" % (MAX_BYTES + 1), LARGEST, b"x\r\n0\r\n\r\n"),
    "one byte over, until the end": says(head(), LARGEST, b"x"),
    "over, announced only": lambda peer: (peer.send(head(b"Content-Length: 99999999")), peer.hang())[1],
}

ATTACKS = CLASSIC | CHUNKS | LENGTHS | HEADERS | REDIRECTS | ENCODINGS | SIZES

#: What is odd or large, but right: it must be delivered.
CONTROLS: dict[str, Behaviour] = {
    "good": says(head(SIZE), PICTURE),
    "good until the end": says(head(), PICTURE),
    "good in chunks": says(head(CHUNKED), FIRST_CHUNK, b"0\r\n\r\n"),
    "good in chunks with extension and trailer": says(
        head(CHUNKED), FIRST_CHUNK.replace(b"\r\n", b";a=b\r\n", 1), b"0;x\r\nX: y\r\n\r\n"
    ),
    "good after one redirect": says(leads(b"/good")),
    "good after a slow redirect": after(2, says(leads(b"/good"))),
    "long body": says(head(SIZE), PICTURE, b"more" * 1000),
    "a second answer behind it": says(head(SIZE, b"Connection: keep-alive"), PICTURE, head(SIZE), CUT),
    "100 before it": says(head(status=b"100 Continue"), head(SIZE), PICTURE),
    "length twice": says(head(SIZE, SIZE), PICTURE),
    "200 with Content-Range": says(head(SIZE, b"Content-Range: bytes 0-9/10"), PICTURE),
    "no reason": says(head(SIZE, status=b"200"), PICTURE),
    "identity": says(head(SIZE, b"Content-Encoding: identity"), PICTURE),
    "as long as may be": says(head(b"Content-Length: %d" % MAX_BYTES), LARGEST),
    "as long as may be, in chunks": says(head(CHUNKED), b"%x\r\n" % MAX_BYTES, LARGEST, b"\r\n0\r\n\r\n"),
    "as long as may be, until the end": says(head(), LARGEST),
}
