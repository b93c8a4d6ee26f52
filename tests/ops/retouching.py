"""A worker that answers without a model: it inverts its source. What is wrong with its answers is said from outside."""

import base64
import contextlib
import hashlib
import io
import threading
from typing import Any, Self

import requests
from PIL import Image, ImageOps

from local.runpod_api import LocalRunPod
from local.web import ImageHost

WORKER = "w1"


class Retoucher:
    """Takes the jobs of an endpoint in a thread. Use it as a context manager.

    Attributes:
        wrong: changes its answers: see `_answer`.
    """

    def __init__(self, api: LocalRunPod, host: ImageHost, endpoint_id: str) -> None:
        self.wrong = ""
        self._host = host
        self._url = f"{api.base_url}/{endpoint_id}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _work(self) -> None:
        with requests.Session() as session, contextlib.suppress(requests.RequestException):
            session.trust_env = False
            while not self._ended.is_set():
                took = session.get(f"{self._url}/job-take/{WORKER}?job_in_progress=0", timeout=30)
                if took.status_code == requests.codes.ok and not self._ended.is_set():
                    job = took.json()
                    done = f"{self._url}/job-done/{WORKER}/{job['id']}"
                    session.post(done, json=self._answer(job["id"], job["input"]), timeout=30)

    def _answer(self, job_id: str, said: dict[str, Any]) -> dict[str, Any]:
        if self.wrong == "failed":
            return {"error": "ModelError: out of memory"}
        if self.wrong == "another worker":
            return {"output": {"text": "hello"}}
        source = base64.b64decode(said["image_url"].partition(",")[2])
        picture = ImageOps.invert(Image.open(io.BytesIO(source)).convert("RGB"))
        if self.wrong == "size":
            picture = picture.resize((64, 64))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG" if self.wrong == "format" else "PNG")
        file = source if self.wrong == "unchanged" else buffer.getvalue()
        link = self._host.put(f"/{job_id}.png", b"else" if self.wrong == "bytes" else file)
        if self.wrong == "cut":
            link = self._host.put(f"/{job_id}.png", file, **{"Content-Length": "999999", "Connection": "close"})
        meta = {
            "output": {"sha256": hashlib.sha256(file).hexdigest()},
            "timings_ms": {"edit": 12.0, "fetch": 0.0, "total": 13.0},
            "reused": self.wrong == "reused",
            "cost_usd": 0.00123,
        }
        link = link.replace(".png", ".gone") if self.wrong == "link" else link
        return {"output": {"status": "success", "result": {"presigned_url": link, "meta": meta}}}
