"""News of a running job: in order, not too often, and never after its answer.

RunPod's own `progress_update` starts a thread for each call: what was said first may arrive last, and even after the
result, where it makes a job that is done run again for ever in the eyes of its caller.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Self

GAP_S = 0.5
FLUSH_S = 3.0  # how long an answer waits for news that is on its way


class Progress:
    """Sends the newest of what it is told. Use it as an async context manager: after its end nothing is sent.

    Args:
        send: brings news to whoever wants it.
        gap_s: least seconds from one to the next.
    """

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[None]], gap_s: float = GAP_S) -> None:
        self._send = send
        self._gap_s = gap_s
        self._news: dict[str, Any] = {}

    def __call__(self, news: dict[str, Any]) -> None:
        """Tell it, from any thread. What is told before the last was sent takes its place."""
        with contextlib.suppress(RuntimeError):  # of a loop that has ended, when a stopped job's last step is done
            self._loop.call_soon_threadsafe(self._put, news)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()
        self._sending = asyncio.Lock()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        # Kept for good: whoever waits for it sends nothing more.
        try:
            await asyncio.wait_for(self._sending.acquire(), FLUSH_S)
        except TimeoutError:
            pass
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _put(self, news: dict[str, Any]) -> None:
        self._news = news
        self._there.set()

    async def _run(self) -> None:
        while True:
            await self._there.wait()
            async with self._sending:
                self._there.clear()
                await self._send(self._news)
            await asyncio.sleep(self._gap_s)
