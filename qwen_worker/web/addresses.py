"""May this address be dialled? Pure functions.

Not `ipaddress.is_global` alone: its verdicts changed between Python releases. The tables are IANA's special-purpose
registries (https://www.iana.org/assignments/iana-ipv4-special-registry, -ipv6-special-registry), and what
ipv6-unicast-address-assignments holds in reserve.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# 168.63.129.16 is public by its number only: Azure answers there with what belongs to the machine.
_CLOSED_V4 = [
    IPv4Network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
        "240.0.0.0/4",
    )
]  # fmt: skip
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
# Inside the global space: Teredo and other protocol assignments, documentation, 6to4 (it embeds an IPv4 address),
# AS112, and what nobody has been given yet (of 3000::/4, 3fff::/20 is documentation and 3ffe::/16 was the 6bone).
_CLOSED_V6 = [
    IPv6Network(block)
    for block in (
        "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "2d00::/8", "2e00::/7", "3000::/4",
    )
]  # fmt: skip
# Interface ids that embed an IPv4 address; two bits of their first byte may be either.
_ISATAP, _ISATAP_MASK = 0x00005EFE, 0xFCFFFFFF


def is_dialable(address: Address, private: Iterable[Network] = ()) -> bool:
    """Whether the address is on the public internet, or in one of the networks the operator opened."""
    if any(address in network for network in private):
        return True
    return _is_public_v4(address) if isinstance(address, IPv4Address) else _is_public_v6(address)


def _is_public_v4(address: IPv4Address) -> bool:
    return not any(address in block for block in _CLOSED_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    if address.scope_id is not None or address not in _GLOBAL_UNICAST_V6:
        return False
    if (int(address) >> 32) & _ISATAP_MASK == _ISATAP:
        return False
    return not any(address in block for block in _CLOSED_V6)
