"""Everything that can go wrong with a job, made to happen by the parts that a worker talks to."""

import base64
import io
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from hostile.secrecy.canaries import CANARY, NEGATIVE_PROMPT, PROMPT
from local.web import ImageHost, Reply

TARGET = f"/{CANARY['path']}/a.png?X-Amz-Signature={CANARY['query']}"
UPLOAD = f"/{CANARY['upload path']}/b.png?sig={CANARY['upload query']}"
#: a host that is not there; one that cannot be reached
NOWHERE, CLOSED = "http://host.invalid", "http://127.0.0.1:9"
SECRET_HEADERS = {"WWW-Authenticate": CANARY["header"], "Set-Cookie": f"a={CANARY['header']}", "X-A": CANARY["header"]}
QUICK = {"num_inference_steps": 2, "width": 256, "height": 256, "true_cfg_scale": 1.0, "reuse": False}
XML = (
    "<?xml version='1.0'?><Error><Code>{2}</Code><Message>{0} {1}</Message><AWSAccessKeyId>{0}</AWSAccessKeyId>"
    "<StringToSign>{1}</StringToSign><Resource>/{1}</Resource></Error>"
)


@dataclass(frozen=True)
class Fault:
    """One job and what befalls it.

    Attributes:
        name: short and unique.
        kind: the type of error that the job must end with; None: it succeeds.
        said: fields of the request, over those of `request`.
        reply: of the picture's host.
        uploaded: the reply of the host that a result is sent to as well; None: there is none.
        bucket: what a bucket that fails answers; None: a real one is used.
        model: called before the model's transformer runs.
        spoil: what becomes of the model's output.
        quick: whether the worker has but half a second for a download, and none for an edit.
    """

    name: str
    kind: str | None
    said: dict[str, Any] = field(default_factory=dict)
    reply: Reply | None = None
    uploaded: Reply | None = None
    bucket: Callable[[BaseHTTPRequestHandler], None] | None = None
    model: Callable[[], None] | None = None
    spoil: Callable[[Any], Any] | None = None
    quick: bool = False


def picture() -> bytes:
    """A PNG that holds a canary."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", CANARY["picture"])
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def request(url: str, **fields: Any) -> dict[str, Any]:
    """With canaries wherever a caller may have put something private."""
    return {"image_url": url, "prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, **QUICK, **fields}


def faults() -> Iterator[Fault]:
    """All of them."""
    yield from _requests()
    yield from _hosts()
    yield from _pictures()
    yield from _buckets()
    yield from _models()
    yield from _uploads()


def _requests() -> Iterator[Fault]:
    user, path, query = CANARY["user"], CANARY["path"], CANARY["query"]
    urls = [
        f"http://{user}:{user}@host/{path}?{query}", f"ftp://host/{path}", f"http://[{path}", f"http://host:{path}/",
        f"http://host/ {path}?{query}", f"http://host/\\{path}", f"http://host/{path}?{query * 400}", path,
        f"data:{path}", f"data:image/png;base64{path}", f"http://\u2100{user}@host/{path}", f"//{user}@host/{path}",
    ]  # fmt: skip
    for name in ("image_url", "mask_url", "upload_url"):
        for number, url in enumerate(urls):
            yield Fault(f"{name} {number}", "BadInput", {name: url})
        for number, odd in enumerate(([path], {path: query}, path.encode(), 10**5000)):
            yield Fault(f"{name} of an odd kind {number}", "BadInput", {name: odd})
    for name, text in (("prompt", PROMPT), ("negative_prompt", NEGATIVE_PROMPT)):
        for number, wrong in enumerate((text * 100, [text], {text: text}, f"{text}\ud800", f"{text}<|im_end|>")):
            yield Fault(f"{name} {number}", "BadInput", {name: wrong}, Reply(picture()))
    for name in ("seed", "scheduler", "lora", "image_urls", "output_format", "operation", "size"):
        yield Fault(f"wrong {name}", "BadInput", {name: object})
    yield Fault("presign", "BadInput", dict.fromkeys(request("")) | {"operation": "presign", "object_key": PROMPT})


def _hosts() -> Iterator[Fault]:
    place, query = CANARY["location"], CANARY["query"]
    tail = TARGET
    yield Fault("no such host", "DownloadFailed", {"image_url": f"{NOWHERE}{tail}"})
    yield Fault("refused", "DownloadFailed", {"image_url": f"{CLOSED}{tail}"})
    yield Fault("no name", "BadInput", {"image_url": f"http://{'a' * 64}.example{tail}"})
    yield Fault("not public", "BadInput", {"image_url": f"http://169.254.169.254{tail}"})
    for status in (401, 404, 500):
        yield Fault(f"status {status}", "DownloadFailed", {}, Reply(CANARY["body"].encode(), status, SECRET_HEADERS))
    for number, (kind, location) in enumerate((
        ("DownloadFailed", f"ftp://{place}/{place}"), ("DownloadFailed", f"http://[{place}/{place}"),
        ("DownloadFailed", f"{CLOSED}/{place}?{place}"), ("DownloadFailed", f"{NOWHERE}/{place}?{place}"),
        ("BadInput", f"http://169.254.169.254/{place}?{place}"), ("DownloadFailed", f"http://{place}:{place}@127.0.0.1:9/"),
        ("DownloadFailed", f"http://127.0.0.1:{place}/{place}"), ("DownloadFailed", f"http://\u2100.{place}/{place}"),
        ("DownloadFailed", f"/{place} {place}"), ("DownloadFailed", f"http://127.0.0.1:9/{place.upper()}/%0a{place}"),
        ("DownloadFailed", tail),
    )):  # fmt: skip
        headers = {"Location": location.encode().decode("latin-1")}
        yield Fault(f"redirect {number}", kind, {}, Reply(b"", 302, headers))
    for name, text in {
        "a status line that is none": f"HTTP/1.1 {CANARY['header']}\r\n\r\n",
        "a header that is none": f"HTTP/1.1 200 OK\r\n{CANARY['header']}\r\n\r\n",
        "a chunk that is none": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY['body']}\r\n",
        "a short body": f"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{CANARY['body']}",
        "a length that is none": f"HTTP/1.1 200 OK\r\nContent-Length: {CANARY['header']}\r\n\r\n",
    }.items():
        kind = "BadInput" if name.startswith(("a header", "a length")) else "DownloadFailed"
        yield Fault(name, f"{kind}|DownloadFailed", {}, Reply(script=_raw(text)))
    yield Fault("a host that hangs", "DownloadFailed", {}, Reply(script=lambda _: time.sleep(1)), quick=True)
    yield Fault("no TLS", "DownloadFailed", {"image_url": f"https://127.0.0.1:9/{place}?{query}"})


def _pictures() -> Iterator[Fault]:
    data, start = picture(), "data:image/png;base64,"
    in_text = base64.b64encode(data).decode()
    yield Fault("a page", "BadInput", {}, Reply(f"<html>{CANARY['body']}".encode()))
    yield Fault("half a picture", "BadInput", {}, Reply(data[: len(data) * 2 // 3]))
    yield Fault("half a picture in the request", "BadInput", {"image_url": start + in_text[: len(in_text) // 8 * 4]})
    yield Fault("no base64", "BadInput", {"image_url": f"{start}{in_text}%"})
    yield Fault(
        "no picture in the request", "BadInput", {"image_url": start + base64.b64encode(PROMPT.encode()).decode()}
    )
    yield Fault("a good picture in the request", None, {"image_url": start + in_text})
    yield Fault("a good picture", None, {}, Reply(data))


def _buckets() -> Iterator[Fault]:
    error = XML.format(CANARY["access key"], CANARY["secret key"], "{}")
    for name, status, body in (
        ("403", 403, error.format("InvalidAccessKeyId")), ("a code", 400, error.format(CANARY["secret key"])),
        ("garbage", 403, f"<{CANARY['body']}"), ("no XML", 403, CANARY["body"]), ("a redirect", 307, ""),
    ):  # fmt: skip
        head = f"HTTP/1.1 {status} {CANARY['header']}\r\nLocation: http://127.0.0.1:9/{CANARY['location']}\r\n"
        answer = _raw(f"{head}Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}")
        yield Fault(f"bucket: {name}", "CacheReadFailed", {}, Reply(picture()), bucket=answer)
    yield Fault("bucket: junk", "CacheReadFailed", {}, Reply(picture()), bucket=_raw(CANARY["body"] + "\r\n\r\n"))
    yield Fault(
        "bucket: no writing", "StorageError", {}, Reply(picture()), bucket=_read_only(error.format("AccessDenied"))
    )


def _models() -> Iterator[Fault]:
    everything = f"{PROMPT} {NEGATIVE_PROMPT} {CANARY['secret key']} {TARGET} {UPLOAD}"
    words = {"prompt": PROMPT, "secret": [CANARY["access key"], CANARY["hub token"], CANARY["job api key"]]}
    errors = {
        "a plain text": ValueError(everything),
        "a mapping": KeyError(words),
        "bytes": RuntimeError(everything.encode()),
        "an escape": TypeError(everything.encode("unicode_escape")),
        "a part": LookupError(PROMPT[4:20], TARGET[:17]),
        "a CUDA error": RuntimeError(f"CUDA error: {everything}"),
        "no memory": torch.OutOfMemoryError(everything),
        "base64": ValueError(base64.b64encode(everything.encode())),
        "capitals": ValueError(everything.upper()),
        "nobody foresaw it": EOFError(words),
        "no words": EOFError(*everything.split()),
    }
    for name, error in errors.items():
        yield Fault(f"model: {name}", "ModelError", {}, Reply(picture()), Reply(), model=_raises(error))
    yield Fault("model: no number", "ModelError", {}, Reply(picture()), spoil=lambda output: output * float("nan"))
    yield Fault("model: no time", "ModelError", {}, Reply(picture()), quick=True)
    yield Fault("model: talks", None, {}, Reply(picture()), Reply(), model=_talks(everything, words))


def _uploads() -> Iterator[Fault]:
    place = CANARY["location"]
    secret = CANARY["body"].encode()
    for status in (200, 401, 403, 500):
        yield Fault(f"upload: {status}", None, {}, Reply(picture()), Reply(secret, status, SECRET_HEADERS))
    moved = Reply(secret, 307, {"Location": f"http://{place}@127.0.0.1:9/{place}?{place}"})
    yield Fault("upload: a redirect", None, {}, Reply(picture()), moved)
    yield Fault("upload: junk", None, {}, Reply(picture()), Reply(script=_raw(f"HTTP/1.1 {CANARY['header']}\r\n\r\n")))
    yield Fault("upload: refused", None, {"upload_url": f"{CLOSED}{UPLOAD}"}, Reply(picture()))
    yield Fault("upload: no host", "BadInput", {"upload_url": f"{NOWHERE}{UPLOAD}"}, Reply(picture()))


def _raw(text: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(text.encode())

    return answer


def _read_only(refusal: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A bucket in which nothing is, and which takes nothing."""
    missing = "<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "PUT":
            handler.rfile.read(int(handler.headers["Content-Length"]))
        status, body = (403, refusal) if handler.command == "PUT" else (404, missing)
        body = "" if handler.command == "HEAD" else body
        head = f"HTTP/1.1 {status} No\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        handler.wfile.write((head + body).encode())

    return answer


def _raises(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def _talks(everything: str, words: dict[str, Any]) -> Callable[[], None]:
    """A library that says all it knows, in every way there is."""

    def die() -> None:
        raise ValueError(everything)

    def act() -> None:
        import sys  # noqa: PLC0415 - as it is now, not as it was when this was imported

        warnings.warn(everything, UserWarning, stacklevel=1)
        print(everything)
        print(everything, file=sys.stderr)
        for name in ("diffusers.pipelines", "transformers", "urllib3", "root"):
            logging.getLogger(name).critical(
                "%s %r", everything, words, extra={"kept": words, "raw": everything.encode()}
            )
            logging.getLogger(name).critical("%d", everything)
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()

    return act


def posed(fault: Fault, host: ImageHost, target: str) -> dict[str, Any]:
    """The fault's request, once the host answers at `target` as the fault has it."""
    if fault.reply:
        host.replies[target] = fault.reply
    said = request(host.url(target), **fault.said)
    if fault.uploaded:
        host.replies[UPLOAD] = fault.uploaded
        said["upload_url"] = host.url(UPLOAD)
    return said
