"""The process in which strangers' bytes are decoded. `decoder` starts it; nothing else imports it.

It ends when its parent does. Messages are JSON, and never pickles: whoever takes it over must gain nothing by it.

Arguments: the number of its socket, MAX_IMAGE_PIXELS, bytes of memory, seconds of computing for one picture.
"""

import contextlib
import io
import json
import mmap
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from qwen_worker.errors import BadInput
from qwen_worker.images.decode import FORMATS, SRGB, Array, decode
from qwen_worker.images.decoder import BROKEN, MESSAGE

# Converting the colours of the largest picture may take so much more of the time, those of others in proportion.
COLOURS = 0.25
MAX_CAUSE = MESSAGE // 16  # characters: as JSON they may take six times as many bytes


class _Result:
    """A file in memory that pixels are written to; `fd` is passed on. `seconds` more if it is as large as may be."""

    def __init__(self, max_pixels: int, seconds: float) -> None:
        self._seconds_a_pixel = seconds / max_pixels
        self.fd = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def allocate(self, height: int, width: int) -> Array:
        """(height, width, 3) in that file. The colours come next."""
        left, _ = signal.getitimer(signal.ITIMER_PROF)
        signal.setitimer(signal.ITIMER_PROF, left + height * width * self._seconds_a_pixel)
        os.ftruncate(self.fd, height * width * 3)
        try:
            pixels = mmap.mmap(self.fd, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            raise MemoryError from error
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def main() -> None:
    """Decode until the other side hangs up."""
    number, max_pixels, memory, seconds = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    cv2.setNumThreads(1)
    _warm_up()
    _limit(memory, max_pixels)
    with socket.socket(fileno=number) as parent:
        _send(parent, {})
        while True:
            message, files, _, _ = socket.recv_fds(parent, MESSAGE, 1)
            if not message:
                return
            with os.fdopen(files[0], "rb") as file:
                data = file.read()
            # The kernel ends this process when the time is up: no library can hold it back.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            answer, fd = _answer(data, json.loads(message)["backdrop"], max_pixels, COLOURS * seconds)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(parent, answer, fd)


def _answer(data: bytes, backdrop: str, max_pixels: int, more_s: float) -> tuple[dict[str, Any], int | None]:
    result = _Result(max_pixels, more_s)
    try:
        pixels = decode(data, max_pixels=max_pixels, backdrop=backdrop, allocate=result.allocate)
    except BadInput as error:
        refusal, cause = error.message, repr(error.__cause__) if error.__cause__ else ""
    except MemoryError:
        refusal, cause = "decoding it takes too much memory: send a smaller one, or a baseline JPEG", ""
    except Exception:  # noqa: BLE001 - of a library, over a stranger's bytes
        refusal, cause = BROKEN, traceback.format_exc()
    else:
        height, width, _ = pixels.array.shape
        return {"format": pixels.format, "size": (width, height), "warnings": pixels.warnings}, result.fd
    os.close(result.fd)
    return {"refused": refusal, "cause": cause[-MAX_CAUSE:]}, None


def _send(parent: socket.socket, answer: dict[str, Any], fd: int | None = None) -> None:
    socket.send_fds(parent, [json.dumps(answer).encode()], [] if fd is None else [fd])
    if fd is not None:
        os.close(fd)


def _warm_up() -> None:
    """Run each decoder once: what they load is there before the memory is counted."""
    for kind in FORMATS:
        file = io.BytesIO()
        Image.new("RGBA" if kind != "JPEG" else "RGB", (16, 16)).save(file, kind, icc_profile=SRGB.tobytes())
        decode(file.getvalue(), max_pixels=256)


def _limit(memory: int, max_pixels: int) -> None:
    """Let this process have so many resident bytes, no child, no core file, and no file but its result."""
    pages = Path("/proc/self/statm").read_text().split()
    size, resident = int(pages[0]) * mmap.PAGESIZE, int(pages[1]) * mmap.PAGESIZE
    for limit, value in {
        resource.RLIMIT_AS: size - resident + memory,
        resource.RLIMIT_FSIZE: 3 * max_pixels,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(limit, (value, value))
    # More than the limit of a file's length is an error and no end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):
        main()
