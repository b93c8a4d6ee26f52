"""Ports and hosts as an operator lists them. Pure functions."""

import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Self

import idna

DEFAULT_PORTS = "80,443,8080,8443"
_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def ports_of(said: str) -> tuple[range, ...]:
    """The ports of a list such as `80,443,8000-9000`.

    Raises:
        ValueError: it is no such list.
    """
    return tuple(_range(part.strip()) for part in said.split(","))


def _range(said: str) -> range:
    if not (match := re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", said)):
        raise ValueError("must be ports and ranges with commas between them, as in 80,443,8000-9000")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"has {said}: ports go from 1 to 65535, and the smaller end of a range comes first")
    return range(first, last + 1)


def told(ports: Iterable[range]) -> str:
    """As an operator would list them."""
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in ports)


def canonical(host: str) -> str:
    """The one spelling of a host: lower case, no dot at its end, punycode, and addresses as `ip_address` writes them.

    What counts as an address, and which, is the system's verdict: it is the system that dials.

    Raises:
        ValueError: it has letters that no host has.
    """
    name = host.strip("[]")
    if not name.isascii():
        name = idna.encode(name, uts46=True).decode()
    name = name.lower().removesuffix(".")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return name
    address = ip_address(str(found[0][4][0]).partition("%")[0])
    return str(address.ipv4_mapped or address if isinstance(address, IPv6Address) else address)


def is_ambiguous(host: str) -> bool:
    """Whether the host is an address in numbers that some read as octal and others do not, as in 010.0.0.1."""
    number = r"(0x[0-9a-f]*|[0-9]+)"
    return bool(re.fullmatch(rf"{number}(\.{number}){{0,3}}\.?", host.lower()) and re.search(r"(^|\.)0[0-9]", host))


@dataclass(frozen=True)
class HostList:
    """Which hosts are open: a refusal wins, and where something is allowed, nothing else is.

    Attributes:
        allowed: canonical hosts; with `*.` in front, the subdomains of one. Empty: all.
        refused: as `allowed`.
    """

    allowed: Sequence[str] = ()
    refused: Sequence[str] = ()

    @classmethod
    def parse(cls, said: str) -> Self:
        """The list in `example.com, *.example.com, !bad.example.com`; empty: all hosts.

        Raises:
            ValueError: an entry is no host.
        """
        entries = [part.strip() for part in said.split(",")] if said.strip() else []
        refused = [_pattern(entry[1:].strip()) for entry in entries if entry.startswith("!")]
        return cls(tuple(_pattern(entry) for entry in entries if not entry.startswith("!")), tuple(refused))

    def has(self, host: str) -> bool:
        """Whether the host is open, however it is spelt.

        Raises:
            ValueError: it has letters that no host has.
        """
        name = canonical(host)
        if any(_fits(name, pattern) for pattern in self.refused):
            return False
        return not self.allowed or any(_fits(name, pattern) for pattern in self.allowed)


def _pattern(said: str) -> str:
    star = "*." if said.startswith("*.") else ""
    wrong = ValueError(f"has {said or 'an empty entry'}: must be hosts as in example.com, *.example.com, !bad.example")
    try:
        host = canonical(said.removeprefix("*."))
    except ValueError:
        raise wrong from None
    if is_ambiguous(said) or (star and _is_address(host)) or not (_is_address(host) or _NAME.fullmatch(host)):
        raise wrong
    return star + host


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _fits(name: str, pattern: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern
