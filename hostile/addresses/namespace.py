"""A network of this process alone, in which every address there is is this machine."""

import ctypes
import errno
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from hostile.outcome import UnableError

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
LOCAL_TABLE, SCOPE_HOST = 255, 254  # linux/rtnetlink.h

#: How a process exits whose kernel refuses.
NO_NAMESPACE = 3

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(UnableError):
    """The kernel does not let this process have a network of its own; says why and what would help."""


def enter(files: Mapping[str, str], unreachable: str) -> None:
    """Leave the machine's network for good. Call it before there is a second thread; no root is needed.

    Args:
        files: path → what this process reads there from now on, as in /etc/resolv.conf.
        unreachable: the one address that nobody answers at.

    Raises:
        NamespaceError: the kernel refuses.
    """
    try:
        _unshare()
        for path, content in files.items():
            _replace(path, content)
        _route(unreachable)
    except (OSError, NetlinkError) as error:
        raise NamespaceError(
            f"{error}: needs root, or user namespaces (user.max_user_namespaces above 0, and no AppArmor or container "
            "profile that forbids them)"
        ) from error


def _unshare() -> None:
    user, group = os.getuid(), os.getgid()
    if user == 0:
        try:
            return _checked(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
        except OSError as error:  # the root of a container, perhaps
            if error.errno != errno.EPERM:
                raise
    _checked(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return None


def _replace(path: str, content: str) -> None:
    # Nothing that is mounted here shows outside.
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(content)
        file.flush()
        _checked(_libc.mount(file.name.encode(), os.path.realpath(path).encode(), None, MS_BIND, None), path)


def _route(unreachable: str) -> None:
    with IPRoute() as network:
        loopback = network.link_lookup(ifname="lo")[0]
        network.link("set", index=loopback, state="up")
        local = {"type": "local", "oif": loopback, "table": LOCAL_TABLE}
        network.route("add", dst="0.0.0.0/0", scope=SCOPE_HOST, **local)
        network.route("add", dst="::/0", family=socket.AF_INET6, **local)
        network.route("add", type="unreachable", dst=f"{unreachable}/32", table=LOCAL_TABLE)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
