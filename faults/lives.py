"""A worker's process and those below it: how they end, and what is left of them."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from faults.checks import BrokenError, hold, until
from local import worker
from local.stack import Stack

END_S = 5.0  # for a process that must go, and for those below it


class Mortal(Stack):
    """A Stack whose worker may end at any time."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self._known: set[psutil.Process] = set()

    def family(self) -> list[psutil.Process]:
        """The processes below the worker."""
        if self.process is None:
            return []
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    @property
    def has_ended(self) -> bool:
        """Whether the worker is gone."""
        return self.process is None or self.process.poll() is not None

    def submit(self, said: Any) -> str:
        """As Stack.submit; who is below the worker then is remembered, for when it is gone."""
        self._known |= set(self.family())
        return super().submit(said)

    def kill(self, *, group: bool = False) -> list[str]:
        """Kill -9 the worker, or all that is in its group; what is left of it."""
        if self.process is None:
            return []
        self._known |= set(self.family())
        os.killpg(self.process.pid, signal.SIGKILL) if group else self.process.kill()
        for one in self._known:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)  # those that this harness has stopped
        self.process.wait()
        return self._left(self.process)

    def ends(self) -> tuple[int, list[str]]:
        """Wait until the worker ends by itself: its exit code, and what is left of it.

        Raises:
            BrokenError: it goes on.
        """
        process = self.process
        self._known |= set(self.family())
        if process is None:
            raise BrokenError("there is no worker")
        try:
            code = process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise BrokenError("the process goes on") from None
        return code, self._left(process)

    def _left(self, process: subprocess.Popen[str]) -> list[str]:
        end = time.monotonic() + END_S
        while (alive := [one for one in self._known if _lives(one)]) and time.monotonic() < end:
            time.sleep(0.05)
        names = ["a decoder" if "decoder_process" in " ".join(_words(one)) else "the heartbeat" for one in alive]
        worker.end_group(process)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process = None
        self._known.clear()
        return names

    def replace_worker(self) -> None:
        """As the platform does when a worker is gone: its jobs go back, and another begins."""
        self.kill()
        for job in list(self.api.jobs.values()):
            if job.status == "IN_PROGRESS":
                self.api.requeue(job.id)
        self.start_worker()

    def refuses(self, **variables: str) -> str:
        """What a worker with these variables says before it ends at once, in its one critical line.

        Raises:
            BrokenError: it asks for a job, ends well, or says it in another way.
        """
        self.kill()
        asked, log = self.api.takes, self.folder / "refused.log"
        process = self.process = worker.start({**self.environment, **variables}, log, program=self._program)
        until(lambda: process.poll() is not None or self.api.takes > asked, "it ends, or asks for a job", 60)
        left = self.kill()
        self.start_worker()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        critical = [line["message"] for line in lines if line["level"] == "CRITICAL"]
        hold(process.returncode > 0, f"its exit code is {process.returncode}")
        hold(len(critical) == 1, f"it says {[line['message'] for line in lines]}")
        hold(not any("exception" in line for line in lines), "it shows a traceback")
        hold(not left, f"left behind: {', '.join(left)}")
        return str(critical[0])

    def freeze_decoders(self, number: signal.Signals = signal.SIGSTOP) -> None:
        """Stop the processes that decode, or send them another signal."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("decoder_process" in word for word in process.cmdline()):
                    process.send_signal(number)


def _lives(process: psutil.Process) -> bool:
    """A process that is dead but not yet waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []
