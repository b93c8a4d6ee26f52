"""GET a stranger's URL under limits: bytes, time, redirects, and which addresses are dialled."""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from qwen_worker import __version__
from qwen_worker.deadlines import Deadline, Watched, current
from qwen_worker.errors import BadInput, DownloadFailed, WorkerError
from qwen_worker.schema import MAX_URL_LENGTH
from qwen_worker.sources.addresses import Network, is_dialable

MAX_REDIRECTS = 3
CONNECT_TIMEOUT_S = 5.0
CHUNK = 64 * 1024
_FOREIGN = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)
# identity: a compressed body could unfold to any size.
HEADERS = {
    "User-Agent": f"qwen-worker/{__version__}",
    "Accept": "image/png, image/jpeg, image/webp, image/*;q=0.8, */*;q=0.1",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True)
class Fetcher:
    """GET under limits.

    Attributes:
        max_bytes: longest body.
        timeout_s: total seconds for all hops, name look-up excepted.
        private: networks that may be dialled although they are not public.
        ca_file: certificates of the authorities to trust; default: those of certifi.
    """

    max_bytes: int
    timeout_s: float
    private: Sequence[Network] = ()
    ca_file: str | None = None

    def fetch(self, url: str) -> bytes:
        """The body at `url`, after at most three redirects.

        Raises:
            BadInput: the address is malformed or not public, or the body is too long.
            DownloadFailed: anything that the other side or the network did.
        """
        _check(url)
        with Deadline(self.timeout_s) as deadline:
            try:
                body = self._follow(url)
                deadline.check()
                return body
            except (WorkerError, *_FOREIGN) as error:
                if deadline.passed:
                    raise DownloadFailed(f"it took longer than {self.timeout_s:g} s") from error
                if isinstance(error, WorkerError):
                    raise
                raise DownloadFailed(f"it could not be fetched: {type(error).__name__}") from error

    def _follow(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            with _Session(self.private, self.ca_file) as session, session.get_exactly(url, self.timeout_s) as response:
                location = response.headers.get("Location")
                if not (300 <= response.status_code < 400 and location):
                    return self._body(response)
                url = _next(url, location)
        raise DownloadFailed(f"it redirects more than {MAX_REDIRECTS} times", retryable=False)

    def _body(self, response: requests.Response) -> bytes:
        status = response.status_code
        if status != requests.codes.ok:
            again = status >= 500 or status in {408, 425, 429}
            raise DownloadFailed(f"its host answered {status}", retryable=again, status=status)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DownloadFailed("its host sent a compressed body although none was asked for")
        body = bytearray()
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            body += chunk
            if len(body) > self.max_bytes:
                raise BadInput(f"it is longer than {self.max_bytes} bytes: send a smaller file")
        if not body:
            raise DownloadFailed("its host sent an empty body")
        return bytes(body)


def _check(url: str) -> None:
    try:
        requests.Request("GET", url).prepare()
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise BadInput("its address is not valid") from error


def _next(url: str, location: str) -> str:
    # http.client reads headers as Latin-1; what was sent is UTF-8.
    target = urljoin(url, location.encode("latin-1").decode(errors="replace"))
    # Browsers forgive spaces here, and so do the hosts that send them.
    target = re.sub(r"[\x00-\x20\x7f]", lambda match: quote(match[0]), target)
    if urlsplit(target).scheme not in {"http", "https"} or len(target) > MAX_URL_LENGTH:
        raise DownloadFailed("it redirects to something that is not an http address", retryable=False)
    return target


class _Session(requests.Session):
    """One hop: no proxy, no cookie, no redirect."""

    def __init__(self, private: Sequence[Network], ca_file: str | None) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = ca_file or True
        self.headers.clear()
        self.headers.update(HEADERS)
        self._adapter = _Adapter(private)
        self.mount("http://", self._adapter)
        self.mount("https://", self._adapter)

    def get_exactly(self, url: str, timeout_s: float) -> requests.Response:
        """GET with the target byte for byte: the libraries below re-quote it, and that breaks signed links."""
        request = self.prepare_request(requests.Request("GET", url))
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
        self._private = private
        super().__init__(max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:  # noqa: FBT001, FBT002 - requests' signature
        super().init_poolmanager(connections, maxsize, block, **options)
        adapter = self

        class Dialer:
            """Dial only checked addresses, and ask for the exact target."""

            host: str
            port: int

            def _new_conn(self) -> socket.socket:
                return _dial(self.host, self.port, adapter._private)

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


def _dial(host: str, port: int, private: Sequence[Network]) -> socket.socket:
    """Connect to the first address of `host` that may be dialled: the address checked is the one connected to."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise BadInput("its host is not a valid name") from error
    except OSError as error:
        raise DownloadFailed("its host has no address") from error
    allowed = [item for item in found if is_dialable(ip_address(item[4][0]), private)]
    if not allowed:
        raise BadInput("its host is not on the public internet")
    return _connect(allowed)


def _connect(found: list[Any]) -> socket.socket:
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
    raise failure or OSError("no address")
