"""The process that has pictures decoded: its arguments are a candidate and the number of a pipe.

It is one of its own, so that what kills it is seen, and what it takes can be measured. It lives from picture to
picture, as a worker does.
"""

import io
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
from PIL import Image

from hostile.decoding.processes import queued
from hostile.outcome import WORKER
from qwen_worker.errors import BadInput
from qwen_worker.images.decode import decode
from qwen_worker.images.decoder import Decoded, Decoder, Limits
from qwen_worker.settings import Settings

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[bytes], Decoded]
PILLOW = "Pillow"
UNGUARDED = "this worker's decoder in the caller's own process"
BASELINES = (PILLOW,)
MEMORY = 4 * 2**30  # bytes of address space: what no candidate may have more of, so that this machine lives
ORDINARY = (64, 48)  # pixels


@dataclass(frozen=True)
class Answer:
    """What became of a picture.

    Attributes:
        decoded: whether it was accepted.
        refused: why not, in words for its sender; None with `decoded` or `untyped`.
        untyped: what was raised instead, if it was no refusal.
        seconds: until then, as `Clock` counts them.
        after: what is wrong with an ordinary picture decoded right after it; None if nothing.
        size: width and height, of an accepted one.
        pixels: (height, width, 3), if they were asked for.
        warnings: that came with it.
    """

    decoded: bool = False
    refused: str | None = None
    untyped: str | None = None
    seconds: float = 0
    after: str | None = None
    size: tuple[int, int] | None = None
    pixels: Pixels | None = None
    warnings: tuple[str, ...] = ()


def limits() -> Limits:
    """The worker's own, as they are if nobody sets them."""
    fields = Settings.model_fields
    return Limits(*(fields[name].default for name in ("max_image_pixels", "decode_memory_bytes", "decode_seconds")))


@contextmanager
def candidate(name: str) -> Iterator[Decode]:
    """What decodes: the one place where this worker's decoder is put to the attacks."""
    if name == WORKER:
        decoder = Decoder(limits())
        yield decoder.decode
        decoder.close()
    elif name == UNGUARDED:
        yield _unguarded
    elif name == PILLOW:
        yield _plain
    else:
        raise ValueError(f"no such candidate: {name}")


def _unguarded(data: bytes) -> Decoded:
    pixels = decode(data, max_pixels=limits().pixels)
    return Decoded(Image.fromarray(pixels.array), pixels.format, pixels.warnings)


def _plain(data: bytes) -> Decoded:
    """Pillow as most programs use it; its documented errors count as refusals."""
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
        return Decoded(opened.convert("RGB"), str(opened.format))
    except (OSError, Image.DecompressionBombError) as error:
        raise BadInput(str(error)) from error


class Clock:
    """Seconds since it was made, without those in which other programs had the processors.

    Else a busy machine would make slow pictures of ordinary ones. Of a process that is gone nothing is taken off.
    """

    def __init__(self) -> None:
        self._queued = queued(os.getpid())
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        """Up to now."""
        wall, now = time.perf_counter() - self._begin, queued(os.getpid())
        return max(0.0, wall - sum(waited - self._queued.get(pid, 0.0) for pid, waited in now.items()))


def answer(decode_with: Decode, data: bytes, *, wants_pixels: bool) -> Answer:
    """Have one picture decoded, and then an ordinary one."""
    clock = Clock()
    try:
        decoded = decode_with(data)
    except BadInput as error:
        return Answer(refused=str(error), seconds=clock.seconds(), after=_ordinary(decode_with))
    except BaseException as error:  # noqa: BLE001 - that nothing else comes out is what is tested
        seconds = clock.seconds()
        return Answer(untyped=f"{type(error).__name__}: {error}"[:200], seconds=seconds, after=_ordinary(decode_with))
    seconds = clock.seconds()
    pixels = np.asarray(decoded.image) if wants_pixels else None
    size, warnings = decoded.image.size, decoded.warnings
    odd = None if decoded.image.mode == "RGB" else f"of mode {decoded.image.mode}"
    del decoded
    after = _ordinary(decode_with)
    return Answer(untyped=odd, decoded=True, seconds=seconds, after=after, size=size, pixels=pixels, warnings=warnings)


def ordinary() -> Image.Image:
    """A picture that nobody has anything against."""
    across, down = np.meshgrid(np.arange(ORDINARY[0]), np.arange(ORDINARY[1]))
    return Image.fromarray(np.stack([across * 3, down * 5, across + down], axis=2).astype(np.uint8))


def _ordinary(decode_with: Decode) -> str | None:
    picture = ordinary()
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    try:
        same = decode_with(buffer.getvalue()).image.tobytes() == picture.tobytes()
    except BaseException as error:  # noqa: BLE001 - as above
        return f"an ordinary picture after it: {type(error).__name__}: {error}"[:200]
    return None if same else "an ordinary picture after it has other pixels"


def main() -> None:
    """Answer what comes in, until nothing does."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with candidate(sys.argv[1]) as decode_with, Connection(int(sys.argv[2])) as asked:
        asked.send(os.getpid())
        while True:
            try:
                wants_pixels = asked.recv()
            except EOFError:
                return
            asked.send(answer(decode_with, asked.recv_bytes(), wants_pixels=wants_pixels))
