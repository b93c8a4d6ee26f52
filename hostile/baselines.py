"""What others would have us fetch with, put to the same attacks: the only module here that knows RunPod.

Each takes a URL and returns the body. `loopback` opens 127.0.0.0/8, by each one's own setting; the authorities to trust
are in REQUESTS_CA_BUNDLE, which all of them obey. What they raise is their own.
"""

import ipaddress
import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import requests
from requests_hardened import Config, Manager

from hostile.outcome import CHECKED, HARDENED, REQUESTS, SAFE_GET

TIMEOUT_S = 8
MAX_BYTES = 26_214_400


def plain_requests(url: str, *, loopback: bool = False) -> bytes:  # noqa: ARG001 - it opens everything
    """The line that most workers have."""
    response = requests.get(url, timeout=TIMEOUT_S)
    response.raise_for_status()
    return response.content


def checked(url: str, *, loopback: bool = False) -> bytes:
    """As it is written everywhere: look the host up, look at the addresses, then fetch."""
    for item in socket.getaddrinfo(urlsplit(url).hostname or "", 80, type=socket.SOCK_STREAM):
        address = ipaddress.ip_address(item[4][0])
        if not (address.is_global or (loopback and address.is_loopback)):
            raise ValueError("private address")
    return plain_requests(url)


def hardened(url: str, *, loopback: bool = False) -> bytes:
    """requests-hardened, with its address filter on. It has no limit of bytes."""
    config = Config(
        ip_filter_enable=True,
        ip_filter_allow_loopback_ips=loopback,
        never_redirect=False,
        default_timeout=(TIMEOUT_S, TIMEOUT_S),
    )
    response = Manager(config).send_request("GET", url)
    response.raise_for_status()
    body: bytes = response.content
    return body


def runpod_safe_get(url: str, *, loopback: bool = False) -> bytes:
    """RunPod's own guard, read with its own limit of bytes."""
    # Imported here: it brings the whole SDK along, which the others must not be measured with.
    from runpod.serverless.utils.rp_ssrf import iter_content_capped, safe_get  # noqa: PLC0415

    # The SDK reads it at every call; it opens private networks too.
    os.environ["RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS"] = str(int(loopback))
    with safe_get(url, timeout=TIMEOUT_S, max_bytes=MAX_BYTES) as response:
        response.raise_for_status()
        return b"".join(iter_content_capped(response, 64 * 1024, MAX_BYTES))


BASELINES: dict[str, Callable[..., bytes]] = {
    REQUESTS: plain_requests,
    CHECKED: checked,
    HARDENED: hardened,
    SAFE_GET: runpod_safe_get,
}
