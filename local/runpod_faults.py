"""What RunPod's job API may do to a worker instead of answering."""

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close without a goodbye
DRIP_S = 0.2
PART = b" " * 2**16


@dataclass
class Fault:
    """One way to fail.

    Attributes:
        kind: answer as below; reset the connection; hang; drip or send without end an answer that begins well, or cut
            it off.
        times: that it happens; None: for ever.
    """

    kind: Literal["answer", "reset", "hang", "drip", "endless", "cut"] = "answer"
    status: int = 200
    body: str = ""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int | None = None

    def happens(self) -> bool:
        """Whether it is to happen now; counts."""
        if not self.times:
            return self.times is None
        self.times -= 1
        return True

    async def befall(self, request: web.Request) -> web.StreamResponse:
        """Answer like this."""
        if self.kind == "answer":
            return web.Response(
                status=self.status, text=self.body, content_type=self.content_type, headers=self.headers
            )
        if self.kind == "hang":
            await asyncio.Event().wait()
        transport = request.transport
        if self.kind == "reset" and transport is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.abort()
            return web.Response()
        response = web.StreamResponse(headers={"Content-Type": self.content_type})
        if self.kind == "cut" and transport is not None:
            response.content_length = 2 * len(PART)
            await response.prepare(request)
            await response.write(PART)
            transport.close()
            return response
        await response.prepare(request)
        while True:
            await response.write(b"[" if self.kind == "drip" else PART)
            await asyncio.sleep(DRIP_S if self.kind == "drip" else 0)
