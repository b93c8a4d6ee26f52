"""Blocking work beside the event loop, inside the log context of its job."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


async def off(executor: Executor, function: Callable[..., T], *arguments: object) -> T:
    """Run a blocking function on a thread of `executor`."""
    run = contextvars.copy_context().run
    return await asyncio.get_running_loop().run_in_executor(executor, run, function, *arguments)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all at the same time; the first that fails cancels the others."""
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(work) for work in works]
        return [task.result() for task in tasks]
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        # An error keeps the frames that it went through. Where one of them keeps the error too, all that they hold
        # stays until Python looks for circles: of a download that failed, the bytes that came.
        failed.__traceback__ = None
    try:
        raise first from first.__cause__
    finally:
        del first, group
        tasks.clear()
