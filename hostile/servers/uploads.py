"""What a hostile server does to a PUT: one function a name, which is also the path."""

import time

from hostile.servers.behaviours import (
    BLOCK,
    CHUNKED,
    MOST_HEADERS,
    SIZE,
    TIMEOUT_S,
    after,
    drips,
    floods,
    head,
    leads,
    resets,
    says,
    then,
)
from local.hostile_server import Behaviour, Peer

MIB = 1024**2
OK = head(b"Content-Length: 0")


def read(behaviour: Behaviour) -> Behaviour:
    """The same, once the body was read."""

    def play(peer: Peer) -> None:
        peer.hear_body()
        behaviour(peer)

    return play


def _resets_in_the_middle(peer: Peer) -> None:
    peer.drain(4 * MIB)
    peer.reset()


def _reads_slowly(peer: Peer) -> None:
    while True:
        peer.drain(1000, 0.05)
        time.sleep(0.05)


ATTACKS: dict[str, Behaviour] = {
    "PUT, hang": read(Peer.hang),
    "PUT, body never read": Peer.hold,
    "PUT, body read slowly": _reads_slowly,
    "PUT, reset in the middle": _resets_in_the_middle,
    "PUT, closed in the middle": lambda peer: peer.drain(4 * MIB),
    "PUT, reset after the body": read(resets(b"")),
    "PUT, closed after the body": read(says()),
    "PUT, answer drip": read(drips(b"HTTP/1.1 200 OK\r\nX: ", b"x")),
    "PUT, status line drip": read(drips(b"HTTP/1.1 200 ", b"x")),
    "PUT, status line without end": read(floods(b"HTTP/1.1 200 ", BLOCK)),
    "PUT, header without end": read(floods(b"HTTP/1.1 200 OK\r\nX: ", BLOCK)),
    "PUT, header flood": read(floods(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n")),
    "PUT, folds without end": read(floods(b"HTTP/1.1 200 OK\r\nX: y\r\n", b" fold\r\n")),
    "PUT, 100-continue flood": floods(b"", head(status=b"100 Continue")),
    "PUT, 100-continue flood after the body": read(floods(b"", head(status=b"100 Continue"))),
    "PUT, 103 flood": read(floods(b"", head(status=b"103 Early Hints"))),
    "PUT, 100 flood of the most headers": read(floods(b"", b"HTTP/1.1 100 Continue\r\n" + MOST_HEADERS + b"\r\n")),
    "PUT, 102 flood": read(floods(b"", head(status=b"102 Processing"))),
    "PUT, redirect loop": read(says(leads(b"/PUT-redirect-loop"))),
    "PUT, redirect without end": read(floods(leads(b"/good", b"X: y"), BLOCK)),
    "PUT, redirect drip": read(drips(leads(b"/good", SIZE), b"x")),
    "PUT, 500 drip": read(drips(head(SIZE, status=b"500 Oh"), b"x")),
    "PUT, 500 without end": read(floods(head(status=b"500 Oh"), BLOCK)),
    "PUT, junk": read(says(b"nonsense\r\n\r\n")),
    "PUT, HTTP/0.9": read(says(b"thank you")),
    "PUT, 200 before the body, which is never read": then(says(OK), Peer.hold),
    "PUT, 200 after the deadline": read(after(TIMEOUT_S + 0.2, says(OK))),
    "PUT, status -200": read(says(head(status=b"-200 OK"))),
}

#: What is odd, but a yes.
CONTROLS: dict[str, Behaviour] = {
    "PUT, good": read(says(OK)),
    "PUT, 100 before it": read(says(head(status=b"100 Continue"), OK)),
    "PUT, 103 before it": read(says(head(status=b"103 Early Hints"), OK)),
    "PUT, 200 with an endless body": read(floods(head(), BLOCK)),
    "PUT, 200 with a drip": read(drips(head(SIZE), b"x")),
    "PUT, 200 with a bad chunk": read(says(head(CHUNKED), b"-1\r\n")),
}
