"""No process of ours outlives us, however we end."""

import ctypes
import os
import signal
import threading

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_us() -> None:
    """Have the kernel kill each child that this thread forks from now on, when this process ends.

    RunPod's SDK forks its heartbeat: left alone it would tell for ever that the jobs of a dead worker are being done.
    What `subprocess` starts is not forked this way, and left as it is.
    """
    prctl, us, thread = ctypes.CDLL(None).prctl, os.getpid(), threading.get_ident()
    forking = 0

    def note() -> None:
        nonlocal forking
        forking = os.getpid()

    def bind() -> None:
        # The kernel goes by the thread that forked: a child of a short one would die with it.
        if forking == us and threading.get_ident() == thread:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != us:
                os._exit(1)

    os.register_at_fork(before=note, after_in_child=bind)
