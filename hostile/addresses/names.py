"""S2: names whose answers change, and names that are never answered."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hostile.addresses import fetchers, zone
from hostile.outcome import WORKER, Outcome, in_time
from qwen_worker.deadlines import cut_when_cancelled
from qwen_worker.errors import WorkerError
from qwen_worker.storage import Bucket
from qwen_worker.upload import Uploader
from qwen_worker.web.lookup import MOST

if TYPE_CHECKING:
    from hostile.addresses.inside import World

ROUNDS = 10
CHANGING = (
    "r1", "r2", "r3", "rrand", "raaaa", "rmeta", "rcname", "rflip", "rmulti", "rboth", "rref", "r1-self",
)  # fmt: skip
_MIXED = ("pub-priv", "priv-pub", "pub-priv-ref", "v4priv-v6pub", "v4pub-v6priv", "many")
FIXED = tuple(f"multi-{how}" for how in _MIXED)
PATHS = ("/img.png", "/redir?code=302&to=http%3A%2F%2F{host}%2Fimg.png", "/redir?code=307&to=%2Fimg.png")
TIMEOUT_S, GRACE_S = 1.0, 1.0
MANY = 3 * MOST


def attacks(world: "World", candidate: str) -> Iterator[Outcome]:
    """Ten rounds of each changing name; of this worker also the names that nobody answers for."""
    fetch = fetchers.of(candidate, world.ca_file)
    for time_ in range(ROUNDS):
        for kind in (*CHANGING, *FIXED):
            for number, path in enumerate(PATHS):
                host = f"{kind}.test" if kind in FIXED else f"{kind}-{time_ * len(PATHS) + number}.test"
                # A second fetch of the same name: its next answer is another one.
                for again in range(2):
                    url = f"http://{host}{path.format(host=host)}"
                    yield _changed(world, fetch, host, url, f"{time_} {again} {url}", typed=candidate == WORKER)
    if candidate == WORKER:
        yield from _silent(world)


def _changed(world: "World", fetch: fetchers.Fetch, host: str, url: str, name: str, *, typed: bool) -> Outcome:
    asked, dialled = len(world.zone.asked), len(world.canary.dialled)
    delivered: list[int] = []

    def noted(url: str) -> bytes:
        body = fetch(url)
        delivered.append(len(body))
        return body

    outcome = world.attack(name, noted, url, typed=typed)
    if outcome.through or not typed:
        return outcome
    times = Counter(world.zone.asked[asked:])
    connections = len(world.canary.dialled) - dialled
    # What was refused, or not reached, was looked up too.
    if (most := max(times.values(), default=0)) > connections + (not delivered):
        return Outcome(name, f"{most} look-ups for {connections} connections", outcome.seconds)
    unknown = {place for place, _ in world.canary.dialled[dialled:]} - world.zone.given.get(host, set())
    return Outcome(name, f"dialled {unknown}, which no answer named" if unknown else None, outcome.seconds)


def _silent(world: "World") -> Iterator[Outcome]:
    fetcher = fetchers.worker_with(world.ca_file, timeout_s=TIMEOUT_S)
    uploader = Uploader(TIMEOUT_S, ca_file=world.ca_file)
    url = f"http://one.{zone.SILENT}/"
    redirect = f"http://pub.test/redir?code=302&to={url}"
    yield _ends("silent: fetch", lambda: fetcher.fetch(url))
    yield _ends("silent: redirect", lambda: fetcher.fetch(redirect))
    yield _ends("silent: upload check", lambda: uploader.check(url))
    yield _ends("silent: upload", lambda: uploader.put(url, b"x", "image/png"))
    bucket = Bucket(
        f"one.{zone.SILENT}", "a", "b", name="pictures", region="r", secure=False, prefix="", timeout_s=TIMEOUT_S,
        expires_s=60,
    )  # fmt: skip
    yield _ends("silent: bucket", lambda: bucket.stat("a"))
    yield in_time(lambda: _cancelled(world, url), GRACE_S)
    yield from _crowd(world, fetcher.fetch)


def _ends(name: str, call: Callable[[], object]) -> Outcome:
    def attempt() -> Outcome:
        begin = time.perf_counter()
        through: str | None = "it came to an end without an error"
        try:
            call()
        except WorkerError:
            through = None
        except Exception as error:  # noqa: BLE001 - none but the worker's own may come
            through = repr(error)
        return Outcome(name, through, time.perf_counter() - begin)

    return in_time(attempt, TIMEOUT_S + GRACE_S)


def _cancelled(world: "World", url: str) -> Outcome:
    """The thread of a cancelled job is free at once."""
    fetcher = fetchers.worker_with(world.ca_file, timeout_s=30)
    ended = threading.Event()

    def fetch() -> None:
        try:
            fetcher.fetch(url)
        finally:
            ended.set()

    async def cancelled() -> None:
        with cut_when_cancelled():
            await asyncio.to_thread(fetch)

    async def run() -> None:
        job = asyncio.create_task(cancelled())
        await asyncio.sleep(0.3)
        job.cancel()
        await asyncio.wait([job])

    begin = time.perf_counter()
    asyncio.run(run())
    ended.wait(2 * GRACE_S)
    return Outcome("silent: cancelled", None if ended.is_set() else "it went on", time.perf_counter() - begin)


def _crowd(world: "World", fetch: fetchers.Fetch) -> Iterator[Outcome]:
    """More at once than there are threads for."""
    with ThreadPoolExecutor(MANY) as pool:
        urls = [f"http://n{number}.{zone.SILENT}/" for number in range(MANY)]
        yield from pool.map(lambda url: _ends(f"silent: {url}", lambda: fetch(url)), urls)
        threads = sum(thread.name.startswith("lookup-") for thread in threading.enumerate())
        yield Outcome("silent: threads", f"{threads} threads" if threads > MOST else None, 0)
        yield world.control("silent: an address needs no look-up", fetch, f"http://{zone.PUBLIC}/img.png")
    patient = fetchers.worker_with(world.ca_file, timeout_s=15).fetch
    yield world.control("silent: others are looked up afterwards", patient, "http://pub.test/img.png")
