"""Pictures put to a decoder in a process of its own: what became of them, how long it took, and how much memory."""

import os
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from subprocess import DEVNULL
from types import TracebackType
from typing import Self

from hostile.decoding.caller import Answer
from hostile.decoding.processes import forget_peaks, peaks
from local import children

SECONDS = 20.0  # after which a candidate is killed
IDLE_MB = 256.0
BETWEEN_LOOKS = 0.005  # s; what a process takes in its last moments before it is killed can be missed by that much


@dataclass(frozen=True)
class Case:
    """A picture's answer, with the most resident memory that any one process had, in MB, and had more than before."""

    answer: Answer
    peak_mb: float
    grown_mb: float


class Decoding:
    """A caller with a candidate in it, started anew whenever it dies or hangs.

    Memory is the peak that the kernel keeps (VmHWM), reset before each picture, of the caller and of every process
    below it, each for itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def put(self, data: bytes, *, wants_pixels: bool = False) -> Case:
        """One picture."""
        idle = self._idle()
        begin = time.perf_counter()
        died = None
        most: dict[int, float] = {}
        try:
            self._pipe.send(wants_pixels)
            self._pipe.send_bytes(data)
            while not self._pipe.poll(BETWEEN_LOOKS):
                _keep_most(most, peaks(self._caller.pid))
                if time.perf_counter() - begin > SECONDS:
                    died = f"still busy after {SECONDS:.0f} s"
                    break
            else:
                _keep_most(most, peaks(self._caller.pid))
                answer = self._pipe.recv()
        except (EOFError, OSError):
            died = f"its caller died: exit status {self._caller.wait()}"
        if died:
            answer = Answer(untyped=died, seconds=time.perf_counter() - begin)
            self._stop()
            self._start()
        grown = max((peak - idle.get(pid, 0.0) for pid, peak in most.items()), default=0.0)
        return Case(answer, max(most.values(), default=0.0), grown)

    def _idle(self) -> dict[int, float]:
        """What each process has now. One that keeps an earlier picture's memory is replaced: it is not this one's."""
        forget_peaks(self._caller.pid)
        idle = peaks(self._caller.pid)
        if max(idle.values(), default=0.0) <= IDLE_MB:
            return idle
        self._stop()
        self._start()
        return peaks(self._caller.pid)

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        command = [
            sys.executable,
            "-c",
            "from hostile.decoding.caller import main; main()",
            self.name,
            str(theirs.fileno()),
        ]
        self._caller = children.start(command, os.environ, pass_fds=[theirs.fileno()], stderr=DEVNULL)
        theirs.close()
        self._pipe.recv()

    def _stop(self) -> None:
        self._pipe.close()
        self._caller.kill()
        self._caller.wait()


def _keep_most(most: dict[int, float], now: dict[int, float]) -> None:
    most.update({pid: max(peak, most.get(pid, 0.0)) for pid, peak in now.items()})
