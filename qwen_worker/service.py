"""The way of a request: sources → pictures → edit → file → bucket. Raises WorkerError only, where it foresees."""

import asyncio
import contextvars
import hashlib
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Protocol, TypeVar

from PIL.Image import Image

from qwen_worker.images.decode import Decoded, decode
from qwen_worker.images.encode import Encoded, encode
from qwen_worker.schema import EditRequest, EditResult, Knobs, Meta, Picture, Size, Timings
from qwen_worker.sources import Source, Sources
from qwen_worker.stopwatch import Stopwatch
from qwen_worker.storage import Bucket

T = TypeVar("T")
log = logging.getLogger(__name__)


class Editor(Protocol):
    """What the model room offers: qwen_worker.model.edit.Editor."""

    model_id: str
    model_revision: str

    def check(self, request: EditRequest, sources: tuple[Size, ...]) -> None:
        """Refuse what the model cannot do with sources of these sizes; raises BadInput."""

    def edit(self, request: EditRequest, images: tuple[Image, ...], cancelled: threading.Event) -> Image:
        """Make the picture; raises ModelError."""


class Service:
    """Edits pictures, several jobs at a time, of which one at a time is on the GPU.

    Args:
        sources: URL → bytes.
        editor: pictures → picture; only ever called on `gpu`.
        bucket: where results go.
        io: threads for the network and for coding pictures.
        gpu: the one thread of the model.
        max_pixels: of a source.
    """

    def __init__(
        self, sources: Sources, editor: Editor, bucket: Bucket, *, io: Executor, gpu: Executor, max_pixels: int
    ) -> None:
        self._sources = sources
        self._editor = editor
        self._bucket = bucket
        self._io = io
        self._gpu = gpu
        self._max_pixels = max_pixels

    async def edit(self, request: EditRequest, job_id: str, watch: Stopwatch) -> EditResult:
        """Do what a request asks for.

        Raises:
            WorkerError: BadInput, DownloadFailed, CacheReadFailed, ModelError or StorageError.
        """
        watch.begin("fetch")
        sources = await asyncio.gather(*(self._off(self._sources.load, url) for url in request.images))
        watch.begin("decode")
        pictures = await asyncio.gather(*(self._off(self._decode, source) for source in sources))
        watch.begin("validate")
        self._editor.check(request, tuple(picture.image.size for picture in pictures))
        # Only what decodes is worth keeping. It is written while the GPU works, and no job waits for it.
        for source, picture in zip(sources, pictures, strict=True):
            self._keep(source, picture)
        image = await self._on_gpu(request, tuple(picture.image for picture in pictures), watch)
        watch.begin("encode")
        encoded = await self._off(encode, image, request.output_format, request.output_quality)
        watch.begin("upload")
        key = object_key(request.digest(tuple(source.sha256 for source in sources)), job_id, encoded.extension)
        full_key = await self._off(self._bucket.put, key, encoded.data, encoded.content_type)
        link = self._bucket.presign(full_key)
        return EditResult(
            presigned_url=link,
            bucket=self._bucket.name,
            object_key=full_key,
            content_type=encoded.content_type,
            expires_in=self._bucket.expires_s,
            meta=self._meta(request, sources[0], pictures[0], image=image, encoded=encoded, watch=watch),
        )

    async def _on_gpu(self, request: EditRequest, images: tuple[Image, ...], watch: Stopwatch) -> Image:
        cancelled = threading.Event()

        def edit() -> Image:
            watch.begin("edit")
            return self._editor.edit(request, images, cancelled)

        watch.begin("queue")
        run = contextvars.copy_context().run
        try:
            return await asyncio.get_running_loop().run_in_executor(self._gpu, run, edit)
        finally:
            # A job that was stopped must not keep the GPU from the next one.
            cancelled.set()

    def _decode(self, source: Source) -> Decoded:
        return decode(source.data, max_pixels=self._max_pixels)

    def _keep(self, source: Source, picture: Decoded) -> None:
        context = contextvars.copy_context()
        kind = f"image/{picture.format.lower()}"
        keeping = self._io.submit(context.run, self._sources.keep, source, kind)
        keeping.add_done_callback(lambda done: context.run(_tell_failure, done))

    def _off(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Run a blocking function on the I/O threads, inside this job's log context."""
        run = contextvars.copy_context().run
        return asyncio.get_running_loop().run_in_executor(self._io, run, function, *arguments)

    def _meta(
        self,
        request: EditRequest,
        source: Source,
        picture: Decoded,
        *,
        image: Image,
        encoded: Encoded,
        watch: Stopwatch,
    ) -> Meta:
        warnings = [*request.warnings, *picture.warnings]
        if request.size not in {None, image.size}:
            warnings.append(f"the size was rounded down to the model's grid: {image.width} x {image.height}")
        return Meta(
            model_id=self._editor.model_id,
            model_revision=self._editor.model_revision,
            **request.model_dump(include=set(Knobs.model_fields)),
            warnings=tuple(warnings),
            cache="hit" if source.hit else "miss",
            source=_picture(picture.image, picture.format.lower(), source.sha256),
            output=_picture(image, request.output_format, encoded.sha256),
            timings_ms=Timings.model_validate(watch.milliseconds()),
        )


def _tell_failure(done: Future[None]) -> None:
    if error := done.exception():
        log.error("source could not be cached", exc_info=error)


def object_key(request_digest: str, job_id: str, extension: str) -> str:
    """Where a result goes, below the prefix. An id that is no plain word is told apart by a digest of itself."""
    word = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:100]
    if word != job_id:
        word = f"{word}-{hashlib.sha256(job_id.encode(errors='replace')).hexdigest()[:16]}"
    return f"results/{request_digest}/{word}.{extension}"


def _picture(image: Image, kind: str, sha256: str) -> Picture:
    return Picture(width=image.width, height=image.height, format=kind, sha256=sha256)
