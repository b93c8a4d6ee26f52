"""The worker with a leak beside it: `python -m local.leaky_worker`, with LEAK_KB in its environment.

Nothing of the worker is changed. So many kilobytes are kept of each job, for ever: who looks for leaks must find it.
"""

import os
from typing import Any

import handler

SIZE = 1024 * int(os.environ.get("LEAK_KB", "0"))

answered = handler.handler
kept: list[bytes] = []


async def leaky(job: dict[str, Any]) -> dict[str, Any]:
    """As the worker's own, but that it keeps something."""
    # Not zeros, which the kernel need not keep.
    kept.append(os.urandom(SIZE))
    return await answered(job)


if __name__ == "__main__":
    handler.handler = leaky
    handler.main()
