"""One request to a stranger's server: no proxy, no cookie, no redirect, and only checked addresses are dialled."""

import socket
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any, Literal

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from qwen_worker import __version__
from qwen_worker.deadlines import Watched, current
from qwen_worker.errors import BadInput
from qwen_worker.web.addresses import Network, is_dialable
from qwen_worker.web.answer import Answer, end_strictly, strict_tls

CONNECT_TIMEOUT_S = 5.0
# identity: a compressed body could unfold to any size.
HEADERS = {"User-Agent": f"qwen-worker/{__version__}", "Accept-Encoding": "identity"}


class NoAddressError(Exception):
    """No name server knows the host."""


#: What a request raises when the other side or the network fails it.
FOREIGN = (NoAddressError, requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)


def is_worth_another_try(status: int) -> bool:
    """Whether the same request may be answered otherwise later."""
    return status >= 500 or status in {408, 425, 429}


def check_url(url: str) -> None:
    """Whether the libraries below understand the address.

    Raises:
        BadInput: they do not.
    """
    try:
        requests.Request("GET", url).prepare()
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise BadInput("its address is not valid: check it") from error


class Session(requests.Session):
    """One hop: no proxy, no cookie, no redirect.

    Args:
        private: networks that may be dialled although they are not public.
        ca_file: certificates of the authorities to trust; default: those of certifi.
    """

    def __init__(self, private: Sequence[Network], ca_file: str | None) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = ca_file or True
        self.headers.clear()
        self.headers.update(HEADERS)
        self._adapter = _Adapter(private)
        self.mount("http://", self._adapter)
        self.mount("https://", self._adapter)

    def addresses(self, url: str) -> list[Any]:
        """The addresses that `send_exactly` would dial, as `socket.getaddrinfo` lists them.

        Raises:
            BadInput: the address is malformed, or its host is not on the public internet.
            NoAddressError: its host has none.
        """
        check_url(url)
        request = self.prepare_request(requests.Request("GET", url))
        pool: Any = self._adapter.get_connection_with_tls_context(request, self.verify)
        found: list[Any] = pool.ConnectionCls(pool.host, pool.port).addresses()
        return found

    def send_exactly(
        self,
        method: Literal["GET", "PUT"],
        url: str,
        timeout_s: float,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send the target byte for byte: the libraries below re-quote it, and that breaks signed links.

        `timeout_s` is that of one read or of the body's sending in seconds; the thread's Deadline ends it all. The
        body of the answer is not read.

        Raises:
            BadInput: the host is not on the public internet.
            FOREIGN: anything that the other side or the network did.
        """
        request = self.prepare_request(requests.Request(method, url, data=data, headers=headers))
        self._adapter.timeout_s = timeout_s
        if url.isascii():
            self._adapter.target = _target(url)
        return self.send(request, stream=True, timeout=(CONNECT_TIMEOUT_S, timeout_s), allow_redirects=False)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: requests would read the whole body of a redirect, even one that it is told not to follow."""


def _target(url: str) -> str:
    rest = url.partition("#")[0].partition("://")[2]
    start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    target = rest[start:]
    return target if target.startswith("/") else f"/{target}"


class _Adapter(HTTPAdapter):
    """Transport whose connections go only to addresses that were checked."""

    def __init__(self, private: Sequence[Network]) -> None:
        self.target: str | None = None
        self.timeout_s: float | None = None
        self._private = private
        super().__init__(max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:  # noqa: FBT001, FBT002 - requests' signature
        super().init_poolmanager(connections, maxsize, block, ssl_context=strict_tls(), **options)
        adapter = self

        class Dialer:
            """Dial only checked addresses, and ask for the exact target."""

            response_class: Any = Answer
            host: str
            port: int
            sock: socket.socket | None

            def addresses(self) -> list[Any]:
                return _resolve(self.host, self.port, adapter._private)

            def _new_conn(self) -> socket.socket:
                return _connect(self.addresses())

            def connect(self) -> None:
                super().connect()  # type: ignore[misc]
                # Else the few seconds of connecting would hold for the whole of a body that is sent.
                if self.sock is not None:
                    self.sock.settimeout(adapter.timeout_s)
                end_strictly(self.sock)

            def putrequest(self, method: str, url: str, *args: Any, **rest: Any) -> None:
                super().putrequest(method, adapter.target or url, *args, **rest)  # type: ignore[misc]

        class Plain(Watched, Dialer, HTTPConnection):
            pass

        class Secure(Watched, Dialer, HTTPSConnection):
            pass

        self.poolmanager.pool_classes_by_scheme = {
            "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain}),
            "https": type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": Secure}),
        }


def _resolve(host: str, port: int, private: Sequence[Network]) -> list[Any]:
    """The addresses of `host` that may be dialled: those checked here are the ones connected to."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise BadInput("its host is not a valid name: check the address") from error
    except OSError as error:
        raise NoAddressError("its host has no address: check the name") from error
    allowed = [item for item in found if is_dialable(ip_address(item[4][0]), private)]
    if not allowed:
        raise BadInput("its host is not on the public internet: give an address that anybody can reach")
    return allowed


def _connect(found: list[Any]) -> socket.socket:
    """A connection to the first of these that answers.

    Raises:
        OSError: none does.
    """
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        deadline = current()
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(min(CONNECT_TIMEOUT_S, deadline.left or 0.001) if deadline else CONNECT_TIMEOUT_S)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    # Not the failure itself: urllib3 takes a reset for one of sending, and stumbles over the socket that is not there.
    raise OSError("no address could be connected to") from failure
