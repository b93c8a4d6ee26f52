"""The way of a request: sources → pictures → edit → file → bucket. Raises WorkerError only, where it foresees."""

import asyncio
import contextvars
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from PIL import Image

from qwen_worker.deadlines import cut_when_cancelled
from qwen_worker.errors import about
from qwen_worker.images.decode import Decoded, decode
from qwen_worker.images.deliver import deliver
from qwen_worker.images.encode import encode
from qwen_worker.images.geometry import Plan, plan
from qwen_worker.images.masks import fitted, in_cells
from qwen_worker.request import ImageRequest, Knobs
from qwen_worker.result import EditResult, Meta, Picture, Timings
from qwen_worker.schema import Size
from qwen_worker.sources import Source, Sources
from qwen_worker.stopwatch import Stopwatch
from qwen_worker.storage import Bucket

T = TypeVar("T")
log = logging.getLogger(__name__)


class Editor(Protocol):
    """What the model room offers: qwen_worker.model.edit.Editor."""

    model_id: str
    model_revision: str
    grid: int

    def check(self, request: ImageRequest, canvas: Size, references: Sequence[Size]) -> None:
        """Refuse what the model cannot do with pictures of these sizes; raises BadInput."""

    def edit(
        self,
        request: ImageRequest,
        canvas: Size,
        references: Sequence[Image.Image],
        mask: Image.Image | None,
        cancelled: threading.Event,
        told: Callable[[int, int], None],
    ) -> Image.Image:
        """Make the picture; tells the passes done and those in all; raises ModelError."""


@dataclass(frozen=True)
class Original:
    """A picture as it came: its bytes, and what they show."""

    source: Source
    decoded: Decoded

    @property
    def image(self) -> Image.Image:
        """Upright."""
        return self.decoded.image

    def told(self) -> Picture:
        """As an answer tells it."""
        return _picture(self.image, self.decoded.format.lower(), self.source.sha256)


@dataclass(frozen=True)
class Prepared:
    """The pictures as the model gets them; `mask` is of the result, `cells` is the same as the model gets it."""

    references: Sequence[Image.Image]
    mask: Image.Image | None
    cells: Image.Image | None
    warnings: tuple[str, ...]


class Service:
    """Edits pictures, several jobs at a time, of which one at a time is on the GPU.

    Args:
        sources: URL → bytes.
        editor: pictures → picture; only ever called on `gpu`.
        bucket: where results go.
        io: threads for the network and for pictures.
        gpu: the one thread of the model.
        max_pixels: of a source.
        max_output_pixels: of a result.
    """

    def __init__(
        self,
        sources: Sources,
        editor: Editor,
        bucket: Bucket,
        *,
        io: Executor,
        gpu: Executor,
        max_pixels: int,
        max_output_pixels: int,
    ) -> None:
        self._sources = sources
        self._editor = editor
        self._bucket = bucket
        self._io = io
        self._gpu = gpu
        self._max_pixels = max_pixels
        self._max_output_pixels = max_output_pixels

    async def edit(self, request: ImageRequest, job_id: str, watch: Stopwatch) -> EditResult:
        """Do what a request asks for.

        Raises:
            WorkerError: BadInput, DownloadFailed, CacheReadFailed, ModelError or StorageError.
        """
        originals = await self._originals(request, watch)
        images, masks = originals[: len(request.images)], originals[len(request.images) :]
        watch.begin("validate")
        planned = plan(
            request,
            [original.image.size for original in images],
            grid=self._editor.grid,
            max_output_pixels=self._max_output_pixels,
        )
        self._editor.check(request, planned.target.canvas, [one.canvas for one in planned.references])
        # Only what decodes is worth keeping. It is written while the GPU works, and no job waits for it.
        for original in {original.source.url: original for original in originals}.values():
            self._keep(original)
        watch.begin("decode")
        prepared = await self._off(self._prepare, planned, images, masks)
        made = await self._on_gpu(request, planned, prepared, watch)
        watch.begin("encode")
        setter = images[request.size_from].image
        delivery = await self._off(deliver, request, planned, setter, prepared.mask, made)
        encoded = await self._off(encode, delivery.image, request.output_format, request.output_quality)
        watch.begin("upload")
        digest = request.digest(
            [one.source.sha256 for one in images], [one.source.sha256 for one in masks], self._editor.model_revision
        )
        full_key = await self._off(
            self._bucket.put, object_key(digest, job_id, encoded.extension), encoded.data, encoded.content_type
        )
        told = [
            f"{name}: {said}"
            for name, original in zip(request.names, originals, strict=True)
            for said in original.decoded.warnings
        ]
        return EditResult(
            presigned_url=self._bucket.presign(full_key),
            bucket=self._bucket.name,
            object_key=full_key,
            content_type=encoded.content_type,
            expires_in=self._bucket.expires_s,
            meta=Meta(
                model_id=self._editor.model_id,
                model_revision=self._editor.model_revision,
                **request.model_dump(include=set(Knobs.model_fields)),
                warnings=(*request.warnings, *told, *prepared.warnings, *delivery.warnings),
                cache="hit" if all(original.source.hit for original in originals) else "miss",
                sources=tuple(original.told() for original in images),
                mask=masks[0].told() if masks else None,
                output=_picture(delivery.image, request.output_format, encoded.sha256),
                geometry=delivery.geometry,
                timings_ms=Timings.model_validate(watch.milliseconds()),
            ),
        )

    async def _originals(self, request: ImageRequest, watch: Stopwatch) -> list[Original]:
        """Fetch and decode every picture of a request, in the order of its addresses."""
        watch.begin("fetch")
        # Each address once, by the first of its names.
        named = dict(reversed(list(zip(request.urls, request.names, strict=True))))
        loaded = dict(zip(named, await _together(self._load(*pair) for pair in named.items()), strict=True))
        watch.begin("decode")
        pairs = [(loaded[url], name) for url, name in zip(request.urls, request.names, strict=True)]
        decoded = await _together(self._off(self._decode, *pair) for pair in pairs)
        return [Original(source, one) for (source, _), one in zip(pairs, decoded, strict=True)]

    async def _load(self, url: str, name: str) -> Source:
        # When another picture of the job fails, this one is no longer wanted: its connection is cut.
        with about(name), cut_when_cancelled():
            return await self._off(self._sources.load, url)

    def _decode(self, source: Source, name: str) -> Decoded:
        with about(name):
            return decode(source.data, max_pixels=self._max_pixels, backdrop="black" if name == "the mask" else "white")

    def _prepare(self, planned: Plan, images: Sequence[Original], masks: Sequence[Original]) -> Prepared:
        pairs = zip(planned.references, images, strict=True)
        references = [placement.prepare(original.image) for placement, original in pairs]
        if not masks:
            return Prepared(references, None, None, ())
        mask, warnings = fitted(masks[0].image, planned.delivered)
        # Averaged over each pixel: what rings, or is drawn out of neighbours, would make the mask larger.
        canvas = planned.target.prepare(mask, Image.Resampling.BOX)
        cells = in_cells(canvas, self._editor.grid // 2)
        return Prepared(references, mask, cells, warnings)

    async def _on_gpu(self, request: ImageRequest, planned: Plan, prepared: Prepared, watch: Stopwatch) -> Image.Image:
        cancelled = threading.Event()

        def edit() -> Image.Image:
            watch.begin("edit")
            canvas, references = planned.target.canvas, prepared.references
            return self._editor.edit(request, canvas, references, prepared.cells, cancelled, lambda _done, _of: None)

        watch.begin("queue")
        if prepared.cells and not prepared.cells.getbbox():
            # The mask is empty: no GPU time is spent on what nobody would see.
            watch.begin("edit")
            return prepared.references[0]
        run = contextvars.copy_context().run
        try:
            return await asyncio.get_running_loop().run_in_executor(self._gpu, run, edit)
        finally:
            # A job that was stopped must not keep the GPU from the next one.
            cancelled.set()

    def _keep(self, original: Original) -> None:
        context = contextvars.copy_context()
        kind = f"image/{original.decoded.format.lower()}"
        keeping = self._io.submit(context.run, self._sources.keep, original.source, kind)
        keeping.add_done_callback(lambda done: context.run(_tell_failure, done))

    async def _off(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a blocking function on the I/O threads, inside this job's log context."""
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._io, run, function, *arguments)


async def _together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all at the same time; the first that fails cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]


def _tell_failure(done: Future[None]) -> None:
    if error := done.exception():
        log.error("source could not be cached", exc_info=error)


def object_key(request_digest: str, job_id: str, extension: str) -> str:
    """Where a result goes, below the prefix. An id that is no plain word is told apart by a digest of itself."""
    word = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:100]
    if word != job_id:
        word = f"{word}-{hashlib.sha256(job_id.encode(errors='replace')).hexdigest()[:16]}"
    return f"results/{request_digest}/{word}.{extension}"


def _picture(image: Image.Image, kind: str, sha256: str) -> Picture:
    return Picture(width=image.width, height=image.height, format=kind, sha256=sha256)
