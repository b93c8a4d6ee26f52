"""Bytes of a stranger → a picture, decoded where no library's defect costs more than that one picture.

Decoding happens in processes of their own with hard limits of memory and computing time, an empty environment and no
files. They are kept for the next picture: a fresh one costs 0.12 s, a warm one some milliseconds.
"""

import contextlib
import fcntl
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_worker.budget import WALL
from qwen_worker.errors import BadInput, ModelError

MESSAGE = 1 << 16  # bytes: the longest between the processes
PROCESSES = 2  # pictures decoded at the same time
PICTURES = 1000  # of one process: then a fresh one takes its place
START_S = 60.0
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_LOG_LEVEL": "SILENT",
    # Some builds of Python find their own library by it.
    **{name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},
}

BROKEN = "the decoder broke down over it: save it anew with another program"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """A source as the model may see it: upright, sRGB, 8 bits, no alpha."""

    image: Image.Image
    format: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Of one picture.

    Attributes:
        pixels: width times height, checked before any pixel is decoded.
        memory_bytes: what the decoding process may have resident.
        seconds: of computing.
    """

    pixels: int
    memory_bytes: int
    seconds: float


class Decoder:
    """Decodes pictures, two at a time, in processes that are started when they are needed and kept."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = threading.BoundedSemaphore(PROCESSES)
        self._idle: list[_Process] = []
        self._end = weakref.finalize(self, _end_all, self._idle)

    def warm_up(self) -> None:
        """Start a process, and wait until it is ready.

        Raises:
            OSError: it cannot be started.
        """
        with self._slots:
            self._idle.append(self._taken())

    def close(self) -> None:
        """End the processes."""
        self._end()

    def decode(self, data: bytes, backdrop: str = "white") -> Decoded:
        """Read a JPEG, PNG or WebP.

        Args:
            data: the file.
            backdrop: the colour of what is transparent.

        Raises:
            BadInput: the bytes are not such a picture, are damaged, are too large, or take too much to decode.
            ModelError: this machine has no process or file to spare.
        """
        with self._slots:
            try:
                try:
                    return self._by(self._taken(), data, backdrop)
                except _DiedError:
                    # Perhaps it was dead before, as where memory is short. If a fresh one dies too, it is the picture.
                    return self._by(_Process(self._limits), data, backdrop)
            except _DiedError as error:
                raise BadInput(BROKEN) from error
            except OSError as error:
                raise ModelError("pictures cannot be decoded here at the moment: try again", retryable=True) from error

    def _by(self, process: "_Process", data: bytes, backdrop: str) -> Decoded:
        try:
            return process.decode(data, backdrop)
        except BadInput:
            raise
        except BaseException:
            # Its answer made no sense, or was not waited for: what it says next would be about another picture.
            process.end()
            raise
        finally:
            if process.usable and self._end.alive:
                self._idle.append(process)
            else:
                process.end()

    def _taken(self) -> "_Process":
        try:
            return self._idle.pop()
        except IndexError:
            return _Process(self._limits)


class _DiedError(Exception):
    """A decoding process ended without an answer; how."""


class _Process:
    """One process, used by one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = PICTURES
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = (theirs.fileno(), limits.pixels, limits.memory_bytes, limits.seconds)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-P", "-m", "qwen_worker.images.decoder_process", *map(str, numbers)],
                cwd="/",
                env=ENVIRONMENT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Signals to the worker's group are the worker's to obey: it finishes its jobs.
                start_new_session=True,
            )
        self._socket.settimeout(START_S)
        if not self._ready():
            raise OSError(f"the decoding process did not start: {self.end()}")
        self._socket.settimeout(WALL * limits.seconds)

    def _ready(self) -> bool:
        try:
            return bool(self._socket.recv(MESSAGE))
        except TimeoutError:
            return False

    @property
    def usable(self) -> bool:
        """Whether it can take another picture."""
        return self._left > 0

    def end(self) -> str:
        """End it; how it ended."""
        self._left = 0
        self._process.kill()
        self._socket.close()
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit {code}"

    def decode(self, data: bytes, backdrop: str) -> Decoded:
        """As Decoder.decode."""
        self._left -= 1
        try:
            self._send(data, backdrop)
            message, files, _, _ = socket.recv_fds(self._socket, MESSAGE, 1)
        except TimeoutError:
            self.end()
            raise self._too_slow() from None
        except ConnectionError:
            message = b""
        if not message:
            how = self.end()
            log.warning("decoding process died", extra={"how": how})
            raise self._too_slow() if how == "SIGPROF" else _DiedError(how)
        with contextlib.ExitStack() as stack:
            for file in files:
                stack.callback(os.close, file)
            return self._read(json.loads(message), files)

    def _send(self, data: bytes, backdrop: str) -> None:
        with os.fdopen(os.memfd_create("file"), "w+b", buffering=0) as file:
            file.write(data)
            file.seek(0)
            socket.send_fds(self._socket, [json.dumps({"backdrop": backdrop}).encode()], [file.fileno()])

    def _too_slow(self) -> BadInput:
        seconds = self._limits.seconds
        return BadInput(f"decoding it takes more than {seconds:g} s: send a smaller one, or save it anew")

    def _read(self, answer: dict[str, Any], files: list[int]) -> Decoded:
        if "refused" in answer:
            raise BadInput(str(answer["refused"])) from (RuntimeError(answer["cause"]) if answer["cause"] else None)
        if not files:
            raise OSError("the pixels did not arrive: there are too many open files")
        return Decoded(image_of(files[0], *answer["size"]), str(answer["format"]), tuple(answer["warnings"]))


def image_of(file: int, width: int, height: int) -> Image.Image:
    """The picture whose RGB pixels lie in a file in memory, by its number.

    Raises:
        OSError: it cannot be kept from shrinking.
        ValueError: it has not so many pixels.
    """
    # A process that somebody took over could shrink it below us, and reading on would end this one.
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with (
        mmap.mmap(file, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ) as pixels,
        memoryview(pixels) as view,
    ):
        return Image.frombytes("RGB", (width, height), view)


def _end_all(processes: list[_Process]) -> None:
    for process in processes:
        process.end()
