"""Work beside the event loop."""

import asyncio
import contextlib
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwen_worker.errors import BadInput
from qwen_worker.threads import off, together


class Body:
    """What a download had when it failed."""


@pytest.mark.parametrize("works", [1, 3])
def test_what_failed_is_gone_with_its_error(works: int) -> None:
    """Not when Python next looks for circles: a download that is too long has 25 MB, and a job or two later as many."""
    bodies: list[weakref.ref[Body]] = []

    def download() -> None:
        body = Body()
        bodies.append(weakref.ref(body))
        raise BadInput("too long")

    async def failing() -> None:
        with ThreadPoolExecutor(1) as io, contextlib.suppress(BadInput):
            await together(off(io, download) for _ in range(works))

    gc.disable()
    try:
        asyncio.run(failing())
        left = [body for body in bodies if body()]
    finally:
        gc.enable()

    assert bodies
    assert left == []
