"""The pictures that a request names: fetched, decoded, and kept for the next one."""

import contextvars
import functools
import logging
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from PIL import Image

from qwen_worker.deadlines import cut_when_cancelled
from qwen_worker.errors import BadInput, about
from qwen_worker.images.decoder import Decoded, Decoder
from qwen_worker.request import ImageRequest
from qwen_worker.result import Picture
from qwen_worker.sources import Source, Sources
from qwen_worker.threads import off, together

log = logging.getLogger(__name__)


class SpoiltError(Exception):
    """What the bucket keeps of a source is no picture: its host may have one."""


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
        size = {"width": self.image.width, "height": self.image.height}
        return Picture(**size, format=self.decoded.format.lower(), sha256=self.source.sha256)


@dataclass(frozen=True)
class Originals:
    """Fetches and decodes.

    Attributes:
        sources: URL → bytes.
        decoder: bytes → picture.
        io: threads that wait for both.
    """

    sources: Sources
    decoder: Decoder
    io: Executor

    async def fetched(self, request: ImageRequest, *, anew: bool = False) -> list[Source]:
        """The bytes of every picture of a request, in the order of its addresses; each address is fetched once.

        `anew`: whatever the bucket keeps.

        Raises:
            BadInput, DownloadFailed, CacheReadFailed: naming the picture.
        """
        # Each by the first of its names.
        named = dict(reversed(list(zip(request.urls, request.names, strict=True))))
        loaded = dict(zip(named, await together(self._load(*pair, anew=anew) for pair in named.items()), strict=True))
        return [loaded[url] for url in request.urls]

    async def decoded(self, request: ImageRequest, sources: Sequence[Source]) -> list[Original]:
        """What they show.

        Raises:
            BadInput: naming the picture.
            SpoiltError: fetch them anew.
        """
        pairs = list(zip(sources, request.names, strict=True))
        decoded = await together(off(self.io, self._decode, *pair) for pair in pairs)
        return [Original(source, one) for source, one in zip(sources, decoded, strict=True)]

    def keep(self, sources: Sequence[Source], told: Sequence[Picture]) -> None:
        """Write them into the bucket, while the job goes on: none waits for it. Call it for what decodes.

        Args:
            sources: the bytes.
            told: what each is.
        """
        context = contextvars.copy_context()
        unique = {source.key: (source, picture) for source, picture in zip(sources, told, strict=True)}
        for source, picture in unique.values():
            keeping = self.io.submit(context.copy().run, self.sources.keep, source, f"image/{picture.format}")
            keeping.add_done_callback(lambda done: context.copy().run(_tell_failure, done))

    async def _load(self, url: str, name: str, *, anew: bool) -> Source:
        # When another picture of the job fails, this one is no longer wanted: its connection is cut.
        with about(name), cut_when_cancelled():
            return await off(self.io, functools.partial(self.sources.load, url, anew=anew))

    def _decode(self, source: Source, name: str) -> Decoded:
        with about(name):
            try:
                return self.decoder.decode(source.data, backdrop="black" if name == "the mask" else "white")
            except BadInput as error:
                if not source.hit:
                    raise
                log.warning("cached source cannot be decoded", exc_info=error)
                raise SpoiltError from error


def _tell_failure(done: Future[None]) -> None:
    if error := done.exception():
        log.error("source could not be cached", exc_info=error)
