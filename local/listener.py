"""A port of the loopback address whose connections are each served in a thread of their own."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self


class Listener:
    """Listens from its making on; use it as a context manager, or `close` it.

    Args:
        serve: is given each connection; what ends it with OSError ends it alone.
        port: where; 0: wherever there is room.
    """

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self._serve = serve
        self._server = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Accept no more. Nobody waits on the socket when its number is free: it would be on the next one's."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection)
