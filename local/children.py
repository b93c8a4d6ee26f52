"""Child processes that die with their parent, and free ports."""

import ctypes
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
    """Start a command that the kernel kills when this process ends, however it ends."""
    return subprocess.Popen(command, env=dict(environment), text=True, preexec_fn=_die_with_parent, **options)


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
