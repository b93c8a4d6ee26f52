"""From a host to a connection: looked up once, and only checked addresses are dialled."""

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from qwen_worker.deadlines import current
from qwen_worker.errors import BadInput
from qwen_worker.web.addresses import Address, Network, is_dialable
from qwen_worker.web.lookup import Found, LookUpTimeoutError, look_up

CONNECT_TIMEOUT_S = 5.0
MOST_ADDRESSES = 16  # of a host that are tried: an answer of a name server has room for thousands


class NoAddressError(Exception):
    """No name server knows the host, or none answers."""


def resolve(host: str, port: int, private: Sequence[Network]) -> Found:
    """The addresses of `host` that may be dialled: those checked here are the ones connected to.

    Raises:
        BadInput: it cannot be a host, or is not on the public internet.
        NoAddressError: it was not found.
        TimeoutError: the thread's deadline passed.
    """
    try:
        found = look_up(host.strip("[]"), port)
    except ValueError as error:
        raise BadInput("its host is not a valid name: check the address") from error
    except TimeoutError:
        raise
    except LookUpTimeoutError as error:
        raise NoAddressError("its host was not found, since no name server answered: check the name") from error
    except OSError as error:
        raise NoAddressError("its host has no address: check the name") from error
    allowed = [item for item in found if is_dialable(_address(item[4]), private)]
    if not allowed:
        raise BadInput("its host is not on the public internet: give an address that anybody can reach")
    return allowed


def _address(place: tuple[Any, ...]) -> Address:
    """Of a socket's address, whose fourth member is the scope."""
    host = str(place[0]).partition("%")[0]
    return ip_address(f"{host}%{place[3]}" if place[3:] and place[3] else host)


def connect(found: Found, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """A connection to the first of these that answers within `timeout_s` seconds, of the first few.

    Raises:
        OSError: none does, or the thread's deadline passed.
    """
    failure: OSError | None = None
    deadline = current()
    for family, kind, protocol, _, address in found[:MOST_ADDRESSES]:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(timeout_s)
        try:
            # Before it is connected: a job that is cancelled meanwhile frees its thread at once, and so does the end.
            if deadline:
                deadline.guard(sock)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    # Not the failure itself: urllib3 takes a reset for one of sending, and stumbles over the socket that is not there.
    raise OSError("no address could be connected to") from failure
