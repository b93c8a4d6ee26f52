"""RunPod's job API over HTTP: questions that it holds open, and answers that must arrive, whatever it does."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from qwen_worker.deadlines import retry_after

log = logging.getLogger(__name__)

MAX_BODY = 32 * 1024**2  # bytes: RunPod takes jobs of at most 20 MB
# 204: nothing to do; 400: what RunPod says while it keeps a worker asleep.
NOTHING = {204, 400}
LATER = {408, 425, 429}  # and 5xx: the same may be taken later
REFUSALS = 3  # so often anything else is asked again
MAX_REASON = 200  # characters in a line of the log


@dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
        connect: to reach the API, its name's look-up included.
        held: that a question may be held open.
        arrived: to look at what has arrived when a question is called off.
        body: for the rest of an answer that has begun.
        quick: a question that was held as long, and then brought nothing, may be asked again at once.
        first: pause after a failure, and after nothing; each further one is twice as long, about.
        idle: longest pause where the API answers, and has nothing.
        longest: pause after failures.
        asked: longest pause that the API may ask for.
        post: for one try to post an answer.
        posting: for all of them.
    """

    connect: float = 10
    held: float = 90
    arrived: float = 0.1
    body: float = 20
    quick: float = 1
    first: float = 0.5
    idle: float = 5
    longest: float = 30
    asked: float = 300
    post: float = 30
    posting: float = 120


class Pauses:
    """One after the other: about twice as long each, until it went well."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._count = 0

    def reset(self) -> None:
        """It went well."""
        self._count = 0

    def next(self, longest_s: float) -> float:
        """Seconds; not the same for all workers, which failed at the same moment."""
        pause = self._first_s * 2.0 ** min(self._count, 16) * random.uniform(1, 1.25)  # noqa: S311 - no secret
        self._count += 1
        return min(longest_s, pause)


class _RefusedError(Exception):
    """The API answered, but not what was asked for."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NotDeliveredError(Exception):
    """An answer that nobody took; why."""


class Question:
    """Something that is asked again and again, and that the API may hold open.

    Args:
        name: for the log.
        read: what the API said, any JSON at all → what was asked for.
        called_off: waits until nobody wants to know any more, for now.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Any], list[Any]],
        called_off: Callable[[], Coroutine[Any, Any, object]],
        patience: Patience,
    ) -> None:
        self._name = name
        self._read = read
        self._called_off = called_off
        self._patience = patience
        self._pauses = Pauses(patience.first)

    async def ask(self, session: ClientSession, url: str) -> list[Any]:
        """Ask once. After a failure, and after nothing that came at once, there is a pause. Raises nothing."""
        begin = time.monotonic()
        found: list[Any] = []
        failure: Exception | None = None
        try:
            response = await self._answer(session, url)
            if response is None:
                return []
            found = self._read(await self._said(response))
        except Exception as error:  # noqa: BLE001 - whatever it was, the next one may go well
            failure = error
        took_s = time.monotonic() - begin
        # Who holds questions open, and lets go of them in an error, is asked again soon too.
        if found or took_s >= (self._patience.idle if failure else self._patience.quick):
            self._pauses.reset()
        if failure or (not found and took_s < self._patience.quick):
            await self._pause(failure)
        return found

    async def _answer(self, session: ClientSession, url: str) -> ClientResponse | None:
        """The answer's head; None: it was called off, or held for as long as it may be."""
        timeout = ClientTimeout(total=None, connect=self._patience.connect)
        asked = asyncio.ensure_future(session.get(url, timeout=timeout))
        try:
            await first(_done(asked, self._patience.held), self._called_off())
            # What has arrived by now is ours, and nobody else gets it.
            await asyncio.wait([asked], timeout=self._patience.arrived)
        finally:
            asked.cancel()
        await asyncio.wait([asked])
        return None if asked.cancelled() else asked.result()

    async def _said(self, response: ClientResponse) -> Any:
        async with response, asyncio.timeout(self._patience.body):
            if response.status in NOTHING:
                return None
            if not 200 <= response.status < 300:
                raise _RefusedError(f"status {response.status}", retry_after(response.headers.get("Retry-After", "")))
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) > MAX_BODY:
                    raise _RefusedError("the answer is too long")
        return json.loads(body) if body.strip() else None

    async def _pause(self, error: Exception | None) -> None:
        longest_s = self._patience.longest if error else self._patience.idle
        seconds = self._pauses.next(longest_s)
        if isinstance(error, _RefusedError) and error.retry_after is not None:
            seconds = max(seconds, min(error.retry_after, self._patience.asked))
        level = logging.WARNING if error else logging.DEBUG
        why = _told(error) if error else "nothing, at once"
        log.log(level, "%s: the next question waits", self._name, extra={"reason": why, "pause_s": round(seconds, 1)})
        await first(asyncio.sleep(seconds), self._called_off())


async def deliver(session: ClientSession, url: str, body: bytes, headers: Mapping[str, str], patience: Patience) -> int:
    """POST an answer until it is accepted; the number of tries.

    Raises:
        NotDeliveredError: it was refused REFUSALS times, or not accepted in time.
    """
    end = time.monotonic() + patience.posting
    pauses = Pauses(patience.first)
    tries = refusals = 0
    while True:
        tries += 1
        asked = 0.0
        timeout = ClientTimeout(total=min(patience.post, max(patience.connect, end - time.monotonic())))
        try:
            async with session.post(url, data=body, headers=headers, timeout=timeout) as response:
                # A redirect may have made a GET of it.
                if 200 <= response.status < 300 and response.method == "POST":
                    return tries
                reason, asked = f"status {response.status}", retry_after(response.headers.get("Retry-After", "")) or 0
                refusals += response.status not in LATER and response.status < 500
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            reason = _told(error)
        left = end - time.monotonic()
        if refusals == REFUSALS or left <= 0:
            raise NotDeliveredError(f"{reason}, after {tries} tries")
        await asyncio.sleep(min(left, max(asked, pauses.next(patience.longest))))


async def first(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for one of them; the others are cancelled."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _done(future: asyncio.Future[Any], timeout_s: float) -> None:
    await asyncio.wait([future], timeout=timeout_s)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON]
