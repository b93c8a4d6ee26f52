"""Ways to fetch a stranger's URL: this worker's, and others to compare with."""

import contextlib
import os
import time
from collections.abc import Callable

from hostile.baselines import BASELINES
from hostile.outcome import WORKER
from qwen_worker.errors import WorkerError
from qwen_worker.sources.fetch import Fetcher
from qwen_worker.upload import Uploader

TIMEOUT_S = 8.0
MAX_BYTES = 25 * 1024**2

Fetch = Callable[[str], bytes]


def of(name: str, ca_file: str) -> Fetch:
    """The function by the name of a candidate; `ca_file` is the authority that it trusts."""
    if name == WORKER:
        return worker_with(ca_file).fetch
    os.environ["REQUESTS_CA_BUNDLE"] = ca_file
    fetch = BASELINES[name]
    with contextlib.suppress(Exception):
        fetch("http://0/")  # what it imports at its first call is not the first attack's time
    return fetch


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
