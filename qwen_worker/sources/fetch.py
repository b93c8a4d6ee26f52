"""GET a stranger's URL under limits: bytes, time, redirects, and which addresses are dialled."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote, urljoin

import requests

from qwen_worker import log as job_log
from qwen_worker.deadlines import Deadline
from qwen_worker.errors import BadInput, DownloadFailed, WorkerError
from qwen_worker.hosts import HostList
from qwen_worker.schema import MAX_URL_LENGTH
from qwen_worker.web.addresses import Network
from qwen_worker.web.dial import NoAddressError
from qwen_worker.web.openings import ALL_HOSTS, PORTS, Openings
from qwen_worker.web.session import FOREIGN, Session, check_url, is_worth_another_try

CHUNK = 64 * 1024
GZIP = zlib.MAX_WBITS | 16
# Words for a body as it is; but for the first two they are mistakes of who stored it, which browsers overlook too.
NO_CODING = {"", "identity", "none", "binary", "base64", "7bit", "8bit", "utf-8", "utf8", "aws-chunked"}
# The second: a proxy has changed something, perhaps.
DELIVERED = {HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION}
ASCII = "".join(map(chr, range(128)))
HEADERS = {"Accept": "image/png, image/jpeg, image/webp, image/*;q=0.8, */*;q=0.1"}


@dataclass(frozen=True)
class Fetcher:
    """GET under limits.

    Attributes:
        max_bytes: longest body.
        timeout_s: total seconds for all hops, name look-up included.
        private: networks that may be dialled although they are not public.
        ca_file: certificates of the authorities to trust; default: those of certifi.
        ports: that may be dialled, at every hop.
        hosts: as `ports`.
        max_redirects: hops after the first.
    """

    max_bytes: int
    timeout_s: float
    private: Sequence[Network] = ()
    ca_file: str | None = None
    ports: Sequence[range] = PORTS
    hosts: HostList = ALL_HOSTS
    max_redirects: int = 3

    def check(self, url: str) -> None:
        """Whether this address may be asked at all, as far as it can be told without a look-up.

        Raises:
            BadInput: it is malformed, or its host or port is closed.
        """
        with self._session() as session:
            session.check(url)

    def fetch(self, url: str) -> bytes:
        """The body at `url`, or where it redirects to.

        Raises:
            BadInput: the address is malformed, closed or not public, or the body is too long.
            DownloadFailed: anything that the other side or the network did.
        """
        check_url(url)
        with Deadline(self.timeout_s) as deadline:
            try:
                body = self._follow(url)
                deadline.check()
                return body
            except (WorkerError, *FOREIGN) as error:
                if deadline.passed:
                    raise DownloadFailed(
                        f"it took longer than {self.timeout_s:g} s: try again, or use a faster host"
                    ) from error
                if isinstance(error, WorkerError):
                    raise
                if isinstance(error, NoAddressError):
                    raise DownloadFailed(str(error)) from error
                raise DownloadFailed(f"it could not be fetched, {type(error).__name__}: try again") from error

    def _follow(self, url: str) -> bytes:
        for _ in range(self.max_redirects + 1):
            with (
                self._session() as session,
                session.send_exactly("GET", url, self.timeout_s, headers=HEADERS) as response,
            ):
                # Some say the same twice.
                location = ", ".join(dict.fromkeys(response.raw.headers.getlist("Location")))
                if not (300 <= response.status_code < 400 and location):
                    return self._body(response)
                job_log.hide(location)
                url = _next(url, location)
                job_log.hide_address(url)
        raise DownloadFailed(
            f"it redirects more than {self.max_redirects} times: send the address that it leads to", retryable=False
        )

    def _session(self) -> Session:
        return Session(Openings(self.private, self.ports, self.hosts), self.ca_file)

    def _body(self, response: requests.Response) -> bytes:
        status = response.status_code
        if status not in DELIVERED:
            again = is_worth_another_try(status)
            advice = "try again" if again else "check that the link opens for everybody"
            raise DownloadFailed(f"its host answered {status}: {advice}", retryable=again, status=status)
        chunks = self._within_limit(response.raw.stream(CHUNK, decode_content=False))
        said = response.headers.get("Content-Encoding", "").lower().split(",")
        codings = [coding for coding in map(str.strip, said) if coding not in NO_CODING]
        if codings in (["gzip"], ["x-gzip"]):
            chunks = self._within_limit(_unpacked(chunks))
        elif codings:
            raise DownloadFailed("its host sent a compressed body although none was asked for: use another host")
        # Hands its own bytes over: a bytearray would have to be copied, and twice the body be in memory.
        body = io.BytesIO()
        for chunk in chunks:
            body.write(chunk)
        if not body.tell():
            raise DownloadFailed("its host sent an empty body: check that the link is the picture itself")
        return body.getvalue()

    def _within_limit(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        length = 0
        for chunk in chunks:
            length += len(chunk)
            if length > self.max_bytes:
                raise BadInput(f"it is longer than {self.max_bytes} bytes: send a smaller file")
            yield chunk


def _unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What some hosts pack although nothing was asked for: one layer of gzip, a little at a time."""
    gzip = zlib.decompressobj(wbits=GZIP)
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if gzip.eof:
                    # A file may be several, one behind the other (RFC 1952, 2.2); what else follows is padding.
                    if not rest.startswith(b"\x1f"):
                        return
                    gzip = zlib.decompressobj(wbits=GZIP)
                yield gzip.decompress(rest, CHUNK)
                rest = gzip.unused_data or gzip.unconsumed_tail
        yield gzip.flush()
    except zlib.error as error:
        raise DownloadFailed("its host sent a broken body: try again, or use another host") from error
    if not gzip.eof:
        raise DownloadFailed("its host sent a body that breaks off: try again")


def _next(url: str, location: str) -> str:
    try:
        return _address(url, location)
    except (ValueError, BadInput) as error:
        what = "it redirects to something that is not an http address: send the picture's own"
        raise DownloadFailed(what, retryable=False) from error


def _address(url: str, location: str) -> str:
    target = urljoin(url, _as_sent(location.strip(" \t")))
    # Browsers forgive spaces here, and so do the hosts that send them.
    target = re.sub(r"[\x00-\x20\x7f]", lambda match: quote(match[0]), target)
    if len(target) > MAX_URL_LENGTH:
        raise ValueError("it is too long")
    check_url(target)
    return target


def _as_sent(location: str) -> str:
    """A header that http.client read as Latin-1; what was sent is UTF-8, or bytes that are no text."""
    sent = location.encode("latin-1")
    try:
        return sent.decode()
    except UnicodeDecodeError:
        return quote(sent, safe=ASCII)
