"""One request to a stranger's server: no proxy, no cookie, no redirect, and only checked addresses are dialled."""

import re
import socket
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import quote

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from qwen_worker import __version__
from qwen_worker.deadlines import Watched
from qwen_worker.errors import BadInput
from qwen_worker.web.answer import Answer, end_strictly, strict_tls
from qwen_worker.web.dial import CONNECT_TIMEOUT_S, NoAddressError, connect, resolve
from qwen_worker.web.lookup import Found
from qwen_worker.web.openings import Openings

# identity: a compressed body could unfold to any size.
HEADERS = {"User-Agent": f"qwen-worker/{__version__}", "Accept-Encoding": "identity"}

#: What a request raises when the other side or the network fails it.
FOREIGN = (NoAddressError, requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)


def is_worth_another_try(status: int) -> bool:
    """Whether the same request may be answered otherwise later."""
    return status >= 500 or status in {408, 425, 429}


def check_url(url: str) -> None:
    """Whether the libraries below understand the address.

    Raises:
        BadInput: they do not, or it is not one of http or https.
    """
    try:
        address = requests.Request("GET", url).prepare().url or ""
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise BadInput("its address is not valid: check it") from error
    if not address.lower().startswith(("http://", "https://")):
        raise BadInput("its address is not valid: give one that begins with http:// or https://")


class Session(requests.Session):
    """One hop: no proxy, no cookie, no redirect.

    Args:
        openings: where it may dial.
        ca_file: certificates of the authorities to trust; default: those of certifi.
    """

    def __init__(self, openings: Openings, ca_file: str | None) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = ca_file or True
        self.headers.clear()
        self.headers.update(HEADERS)
        self._adapter = _Adapter(openings)
        self.mount("http://", self._adapter)
        self.mount("https://", self._adapter)

    def addresses(self, url: str) -> Found:
        """The addresses that `send_exactly` would dial, as `socket.getaddrinfo` lists them.

        Raises:
            BadInput: the address is malformed or closed, or its host is not on the public internet.
            NoAddressError: its host has none.
            TimeoutError: the thread's deadline passed.
        """
        found: Found = self._connection(url).addresses()
        return found

    def check(self, url: str) -> None:
        """Whether the address may be asked at all. Nothing is looked up.

        Raises:
            BadInput: it is malformed or closed.
        """
        self._connection(url).check()

    def _connection(self, url: str) -> Any:
        check_url(url)
        request = self.prepare_request(requests.Request("GET", url))
        try:
            pool: Any = self._adapter.get_connection_with_tls_context(request, self.verify)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise BadInput("its address is not valid: check it") from error
        return pool.ConnectionCls(pool.host, pool.port)

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
            BadInput: the host or the port is closed, or the host is not on the public internet.
            FOREIGN: anything that the other side or the network did.
        """
        request = self.prepare_request(requests.Request(method, url, data=data, headers=headers))
        self._adapter.timeout_s = timeout_s
        self._adapter.target = _target(url)
        return self.send(request, stream=True, timeout=(CONNECT_TIMEOUT_S, timeout_s), allow_redirects=False)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: requests would read the whole body of a redirect, even one that it is told not to follow."""


def _target(url: str) -> str:
    """Path and query as they are written, but for letters that cannot be sent."""
    rest = url.partition("#")[0].partition("://")[2]
    start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    target = rest[start:]
    target = target if target.startswith("/") else f"/{target}"
    return re.sub(r"[^\x00-\x7f]+", lambda match: quote(match[0]), target)


class _Adapter(HTTPAdapter):
    """Transport whose connections go only to addresses that were checked."""

    def __init__(self, openings: Openings) -> None:
        self.target = ""
        self.timeout_s: float | None = None
        self._openings = openings
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

            def check(self) -> None:
                adapter._openings.check(self.host, self.port)

            def addresses(self) -> Found:
                self.check()
                return resolve(self.host, self.port, adapter._openings.private)

            def _new_conn(self) -> socket.socket:
                return connect(self.addresses())

            def connect(self) -> None:
                super().connect()  # type: ignore[misc]
                # Else the few seconds of connecting would hold for the whole of a body that is sent.
                if self.sock is not None:
                    self.sock.settimeout(adapter.timeout_s)
                end_strictly(self.sock)

            def putrequest(self, method: str, _url: str, *args: Any, **rest: Any) -> None:
                super().putrequest(method, adapter.target, *args, **rest)  # type: ignore[misc]

        class Plain(Watched, Dialer, HTTPConnection):
            pass

        class Secure(Watched, Dialer, HTTPSConnection):
            pass

        self.poolmanager.pool_classes_by_scheme = {
            "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain}),
            "https": type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": Secure}),
        }
