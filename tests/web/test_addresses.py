"""Which addresses may be dialled."""

from ipaddress import ip_address, ip_network

import pytest

from qwen_worker.web.addresses import is_dialable


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "172.15.0.1",
        "172.32.0.1",
        "223.255.255.254",
        "2606:4700::1111",
        "2a00::1",
    ],
)
def test_public_addresses_may_be_dialled(address: str) -> None:
    """Ordinary hosts."""
    assert is_dialable(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.0.1", "169.254.169.254", "172.16.0.1",
        "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1",
        "2001::1", "2001:db8::1", "2002:7f00:1::", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
        "fe80::1", "fec0::1", "ff02::1", "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:a00:1", "fe80::1%eth0",
        "2606:4700::1%eth0",
    ],
)  # fmt: skip
def test_everything_else_may_not(address: str) -> None:
    """Loopback, private, link-local, documentation, multicast, and whatever embeds another address."""
    assert not is_dialable(ip_address(address))


def test_an_operator_can_open_a_network() -> None:
    """That network and no other."""
    opened = [ip_network("10.0.0.0/24"), ip_network("fd00::/8")]

    assert is_dialable(ip_address("10.0.0.9"), opened)
    assert is_dialable(ip_address("fd00::1"), opened)
    assert not is_dialable(ip_address("10.0.1.9"), opened)
    assert not is_dialable(ip_address("127.0.0.1"), opened)


@pytest.mark.parametrize("address", ["168.63.129.16", "2a00::300:5efe:a00:1", "3ffe::1", "3000::1", "2d00::1"])
def test_what_is_public_by_its_number_only_may_not(address: str) -> None:
    """The platform's own place at Azure, an embedded address with the other bits set, and space that nobody has."""
    assert not is_dialable(ip_address(address))
