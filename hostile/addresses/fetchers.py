"""Ways to fetch a stranger's URL: this worker's, and others to compare with."""

import importlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import requests

from hostile.outcome import WORKER
from qwen_worker.errors import WorkerError
from qwen_worker.sources.fetch import Fetcher
from qwen_worker.upload import Uploader

TIMEOUT_S = 8.0
MAX_BYTES = 25 * 1024**2
REQUESTS, CHECKED, HARDENED, SAFE_GET = "requests", "validate-then-fetch", "requests-hardened", "RunPod safe_get"

Fetch = Callable[[str], bytes]


def of(name: str, ca_file: str) -> Fetch:
    """The function by the name of a candidate; `ca_file` is the authority that it trusts."""
    makers = {WORKER: _worker, REQUESTS: _requests, CHECKED: _checked, HARDENED: _hardened, SAFE_GET: _safe_get}
    return makers[name](ca_file)


def worker_with(ca_file: str, *, any_port: bool = False, timeout_s: float = TIMEOUT_S) -> Fetcher:
    """This worker's, as it comes; or with all ports open, so that nothing hangs on them."""
    if any_port:
        return Fetcher(max_bytes=MAX_BYTES, timeout_s=timeout_s, ca_file=ca_file, ports=(range(1, 65536),))
    return Fetcher(max_bytes=MAX_BYTES, timeout_s=timeout_s, ca_file=ca_file)


def put_with(ca_file: str) -> Fetch:
    """This worker's other way out: a PUT to an address that a caller gave."""
    uploader = Uploader(TIMEOUT_S, ca_file=ca_file, ports=(range(1, 65536),))

    def put(url: str) -> bytes:
        uploader.put(url, b"picture", "image/png")
        return b""

    return put


def _worker(ca_file: str) -> Fetch:
    return worker_with(ca_file).fetch


def _requests(ca_file: str) -> Fetch:
    return lambda url: _body(requests.get(url, timeout=TIMEOUT_S, verify=ca_file))


def _checked(ca_file: str) -> Fetch:
    """As it is written everywhere: look the host up, look at the addresses, then fetch."""

    def fetch(url: str) -> bytes:
        host = urlsplit(url).hostname or ""
        for item in socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM):
            if not ipaddress.ip_address(item[4][0]).is_global:
                raise ValueError("private address")
        return _body(requests.get(url, timeout=TIMEOUT_S, verify=ca_file))

    return fetch


def _hardened(ca_file: str) -> Fetch:
    hardened = importlib.import_module("requests_hardened")
    config = hardened.Config(
        default_timeout=(2, TIMEOUT_S),
        never_redirect=False,
        ip_filter_enable=True,
        ip_filter_allow_loopback_ips=False,
        user_agent_override=None,
    )
    manager = hardened.Manager(config)
    return lambda url: _body(manager.send_request("GET", url, verify=ca_file))


def _safe_get(ca_file: str) -> Fetch:
    """It has no word for an authority: the variable that requests reads says it."""
    safe = importlib.import_module("runpod.serverless.utils.rp_ssrf")

    os.environ["REQUESTS_CA_BUNDLE"] = ca_file
    return lambda url: _body(safe.safe_get(url, timeout=TIMEOUT_S))


def _body(response: requests.Response) -> bytes:
    response.raise_for_status()
    return response.content


def tried(fetch: Fetch, url: str) -> tuple[bytes | None, Exception | None, float]:
    """The body or the error, and the seconds."""
    begin = time.perf_counter()
    try:
        return fetch(url), None, time.perf_counter() - begin
    except Exception as error:  # noqa: BLE001 - which ones there are is what is looked at
        return None, error, time.perf_counter() - begin


def is_typed(error: Exception) -> bool:
    """Whether a caller would be told what to do."""
    return isinstance(error, WorkerError)
