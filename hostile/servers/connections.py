"""What goes wrong before a request is heard, or inside TLS: one function a name."""

import ssl

from hostile.servers.behaviours import (
    BLOCK,
    CHUNKED,
    CUT,
    FIRST_CHUNK,
    LARGEST,
    PICTURE,
    SIZE,
    drips,
    ends_its_half,
    floods,
    head,
    leads,
    resets,
    says,
    spells,
    then,
)
from local.hostile_server import Behaviour, Peer

HANDSHAKE = b"\x16\x03\x03"  # a record's first bytes
FULL_RECORD = HANDSHAKE + b"\x40\x00" + b"\x02\x00\xff\xff" + b"\x00" * 16380


def after_hello(behaviour: Behaviour) -> Behaviour:
    """Once the client's first TLS record is there."""

    def play(peer: Peer) -> None:
        peer.heard = peer.connection.recv(16384)
        behaviour(peer)

    return play


#: On a port of its own, addressed with http.
UNHEARD: dict[str, Behaviour] = {
    "reset at once": lambda peer: peer.reset(),
    "closed at once": says(),
    "answer without a question, endless": floods(head(), BLOCK),
    "never reads, never writes": Peer.hold,
    "TLS on an http port": says(HANDSHAKE + b"\x00\x02\x02\x28"),
}

#: On a port of its own, addressed with https.
HANDSHAKES: dict[str, Behaviour] = {
    "TLS hang": Peer.hang,
    "TLS hello never read": Peer.hold,
    "TLS handshake drip": spells(FULL_RECORD, 0.2),
    "TLS junk": after_hello(floods(b"", b"nonsense")),
    "TLS records flood": after_hello(floods(b"", FULL_RECORD)),
    "TLS hello requests flood": after_hello(floods(b"", HANDSHAKE + b"\x00\x04\x00\x00\x00\x00")),
    "TLS empty records flood": after_hello(floods(b"", HANDSHAKE + b"\x00\x00")),
    "TLS change-cipher-spec flood": after_hello(floods(b"", b"\x14\x03\x03\x00\x01\x01")),
    "TLS warnings drip": after_hello(drips(b"", b"\x15\x03\x03\x00\x02\x01\x5a")),
    "TLS alert": after_hello(says(b"\x15\x03\x03\x00\x02\x02\x28")),
    "TLS reset": after_hello(resets(b"")),
    "TLS reset in a record": after_hello(resets(FULL_RECORD[:100])),
    "http on a TLS port": after_hello(says(head(SIZE), PICTURE)),
    "endless http on a TLS port": after_hello(floods(head(), BLOCK)),
    "half-closed TLS": after_hello(ends_its_half(b"")),
}


def _says_and_ends(*parts: bytes) -> Behaviour:
    """These bytes, then TLS's own word for the end."""

    def play(peer: Peer) -> None:
        peer.send(b"".join(parts))
        if isinstance(peer.connection, ssl.SSLSocket):
            peer.connection.unwrap()

    return play


#: By path, with a good certificate. A server here ends without close_notify, unless it says so.
INSIDE_TLS: dict[str, Behaviour] = {
    "TLS, then a hang": Peer.hang,
    "TLS, body drip": drips(head(SIZE), b"x"),
    "TLS, endless body": floods(head(), BLOCK),
    "TLS, endless 3xx body": floods(leads(b"/TLS-good", b"X: y"), BLOCK),
    "TLS, short body": says(head(SIZE), CUT),
    "TLS, no length, cut without close_notify": says(head(), CUT),
    "TLS, chunks cut without close_notify": says(head(CHUNKED), FIRST_CHUNK),
    "TLS, headers cut without close_notify": says(b"HTTP/1.1 200 OK\r\nX: y\r\n"),
    "TLS, reset in the body": resets(head(SIZE) + CUT),
    "TLS, reset in a body without length": resets(head() + CUT),
    "TLS, chunk of -1 bytes": floods(head(CHUNKED) + b"-1\r\n", BLOCK),
    "TLS, one byte a record": then(says(head(SIZE)), spells(PICTURE, 0.001)),
    "TLS, one byte over": says(head(), LARGEST, b"x"),
}

INSIDE_TLS_CONTROLS: dict[str, Behaviour] = {
    "TLS, good": says(head(SIZE), PICTURE),
    "TLS, good in chunks": says(head(CHUNKED), FIRST_CHUNK, b"0\r\n\r\n"),
    "TLS, good until close_notify": _says_and_ends(head(), PICTURE),
    "TLS, as long as may be": says(head(b"Content-Length: %d" % len(LARGEST)), LARGEST),
}
