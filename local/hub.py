"""A stand-in for the Hugging Face Hub, as far as its client asks: a folder is a repository at a commit."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from local.web import ImageHost, Reply

COMMIT = "0123456789" * 4


class LocalHub:
    """Serves a folder; set HF_ENDPOINT to the address of the host.

    Attributes:
        sent: file → bytes of it that were sent, all times together.
        stall: a file of which half is sent, and no more.
        stalled: set when that has happened.

    Args:
        host: where.
        folder: as a repository.
        name: of it.
        sizes: file → what the Hub says it has, if not the truth.
    """

    def __init__(
        self, host: ImageHost, folder: Path, name: str = "someone/words", sizes: dict[str, int] | None = None
    ) -> None:
        self.sent: Counter[str] = Counter()
        self.stall, self.stalled = "", threading.Event()
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        size = {file: (folder / file).stat().st_size for file in files} | (sizes or {})
        tree = [
            {"type": "file", "path": file, "oid": f"{number:040x}", "size": size[file]}
            for number, file in enumerate(files)
        ]
        api = f"/api/models/{name}/tree/{COMMIT}?recursive=true&expand=false"
        host.put(api, json.dumps(tree).encode(), **{"Content-Type": "application/json"})
        for number, file in enumerate(files):
            data = (folder / file).read_bytes()
            host.replies[f"/{name}/resolve/{COMMIT}/{file}"] = Reply(
                script=lambda handler, file=file, data=data, tag=f"{number:040x}": self._send(  # type: ignore[misc]
                    handler, file, data, tag, size[file]
                )
            )

    def _send(self, handler: BaseHTTPRequestHandler, file: str, data: bytes, tag: str, size: int) -> None:
        handler.send_response(200)
        headers = {"Content-Length": str(size), "X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Connection": "close"}
        for header, value in headers.items():
            handler.send_header(header, value)
        handler.end_headers()
        if handler.command != "HEAD":
            stalls = file == self.stall
            self.sent[file] += handler.wfile.write(data[: len(data) // 2] if stalls else data)
            if stalls:
                self.stalled.set()
                handler.rfile.read(1)  # until the other side is gone
