"""Addresses that lead inside, in a network where every address is a canary."""

import pytest

from hostile.addresses import suites as addresses
from hostile.outcome import REQUESTS, WORKER, Outcome


def outcomes(suite: str, candidate: str = WORKER) -> list[Outcome]:
    return list(addresses.run(suite, candidate))


def through(found: list[Outcome]) -> dict[str, str]:
    return {case.name: case.through for case in found if case.through}


@pytest.mark.slow
def test_no_address_leads_inside() -> None:
    """665 that are listed, every way to write an address with every block that is not public, closed ports, a PUT.

    And the 21 ordinary ones are fetched.
    """
    found = outcomes("S1")

    assert through(found) == {}
    assert sum(case.control for case in found) == 21
    assert len(found) > 5000


@pytest.mark.slow
def test_what_was_checked_is_dialled_and_a_silent_name_server_holds_nobody_up() -> None:
    """Names whose answers change between two look-ups, and names that are never answered for."""
    found = outcomes("S2")

    assert through(found) == {}
    assert sum(case.name.startswith("silent") for case in found) > 100


@pytest.mark.slow
def test_the_attacks_reach_whoever_has_no_guard() -> None:
    """Else they would prove nothing: plain requests fetches the controls, and goes where it is sent."""
    found = outcomes("S1-list", REQUESTS)
    names = [name.split()[1] for name in through(found)]

    assert len(names) > 200
    assert set(names) >= {"1-iana-v4", "1-iana-v6", "2-encoded-v4", "3-embedded-v6", "4-dns", "5-rebind", "6-redirect"}
    assert all(case.through is None for case in found if case.control)
