"""One attempt in a process of its own: `python -m hostile.servers.attempt CANDIDATE GET|PUT URL WARM_UP_URL [CA_FILE]`.

A line of JSON tells how it ended. A process is fresh, so that memory which an earlier case left behind hides nothing.
"""

import hashlib
import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from hostile.outcome import WORKER
from hostile.servers.behaviours import MAX_BYTES, TIMEOUT_S
from qwen_worker.sources.fetch import Fetcher
from qwen_worker.upload import Uploader

LOOPBACK = (ip_network("127.0.0.0/8"),)
PORTS = (range(1, 65536),)
#: Baselines take what they can get: the machine must survive them.
MOST_MEMORY = 3 * 1024**3
GIVE_UP_S = 20.0
UPLOAD = b"x" * 32 * 1024**2


def memory_mb(name: str) -> float:
    """VmRSS, the resident memory now, or VmHWM, its peak since it was reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def run(action: Callable[[], bytes]) -> dict[str, Any]:
    """How the action ended, its seconds, and its peak of memory over what there was before."""
    Path("/proc/self/clear_refs").write_text("5")
    idle, begin = memory_mb("VmRSS"), time.perf_counter()

    def measured(**end: Any) -> dict[str, Any]:
        return {"seconds": time.perf_counter() - begin, "peak_mb": memory_mb("VmHWM") - idle, **end}

    def give_up() -> None:
        print(json.dumps(measured(error="none", message="did not end")), flush=True)
        os._exit(0)

    timer = threading.Timer(GIVE_UP_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        body = action()
    except Exception as error:  # noqa: BLE001 - what a candidate raises is what is asked
        ended = measured(error=type(error).__name__, message=str(error)[:300])
    else:
        ended = measured(size=len(body))
        ended["sha256"] = hashlib.sha256(body).hexdigest()
    timer.cancel()
    return ended


def candidate(name: str, method: str, ca_file: str | None) -> Callable[[str], bytes]:
    """What takes a URL and returns a body; of a PUT it is empty."""
    if name != WORKER:
        # Not before: the worker must not be measured with them.
        from hostile.baselines import BASELINES  # noqa: PLC0415

        return lambda url: BASELINES[name](url, loopback=True)
    if method == "GET":
        return Fetcher(MAX_BYTES, TIMEOUT_S, LOOPBACK, ca_file, PORTS).fetch
    uploader = Uploader(TIMEOUT_S, LOOPBACK, ca_file, PORTS)

    def put(url: str) -> bytes:
        uploader.put(url, UPLOAD, "image/png")
        return b""

    return put


def main() -> None:
    """Warm up, so that what is loaded once is not counted; then the attempt itself."""
    name, method, url, warm_up, *ca_file = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    act = candidate(name, method, ca_file[0] if ca_file else None)
    act(warm_up)
    print(json.dumps(run(lambda: act(url))))


if __name__ == "__main__":
    main()
