"""How an attack's end is judged."""

from collections.abc import Iterator

import pytest

from hostile.outcome import Outcome, in_time


@pytest.mark.parametrize(
    ("seconds", "through"), [([1.0], None), ([5.0, 1.0], None), ([5.0, 4.0], "it took 4.0 s"), ([5.0, 2.0], None)]
)
def test_what_is_late_twice_is_late(seconds: list[float], through: str | None) -> None:
    """Once, and it was the machine."""
    attempts: Iterator[float] = iter(seconds)

    assert in_time(lambda: Outcome("a", None, next(attempts)), 2).through == through
    assert list(attempts) == []


def test_what_got_through_is_told_before_what_was_late() -> None:
    """It weighs more."""
    assert in_time(lambda: Outcome("a", "a wrong picture", 5), 2).through == "a wrong picture"
