"""A fair sample of S10 to S14, and that what does not hold is told."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from faults import gpu, hangs, life
from faults.checks import BrokenError, error_of, result_of, until
from faults.rig import Rig
from faults.twice import in_turn
from local.faulty_orders import Order


@pytest.fixture(scope="module")
def rig(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One worker that fails on command, for all tests; each leaves it working."""
    with Rig(tmp_path_factory.mktemp("rig") / "rig", model=tiny, more=hangs.DEADLINES) as running:
        yield running


@pytest.mark.slow
def test_a_job_whose_worker_was_killed_is_done_by_the_next(rig: Rig) -> None:
    """In the middle of its edit."""
    life.killed(rig, "edit", partial(life.STAGES["edit"], rig, 2), group=False)


@pytest.mark.slow
def test_the_same_job_again_runs_no_model(rig: Rig) -> None:
    """Five times."""
    in_turn(rig, rig.request("again"))


@pytest.mark.slow
def test_memory_that_ran_out_costs_one_job(rig: Rig) -> None:
    """And leaves no picture."""
    gpu.harmless(rig, "transformer", "oom")


@pytest.mark.slow
def test_a_sick_device_costs_its_process_and_no_other_job(rig: Rig) -> None:
    """The one behind it is done by the next."""
    gpu.sick(rig, "transformer", "device_assert")


@pytest.mark.slow
def test_a_hang_ends_at_its_deadline(rig: Rig) -> None:
    """Of the model and of the bucket; how late is not looked at here."""
    for case in hangs.HANGS:
        if case.name in {"the transformer: native_hang", "a result: hang"}:
            hangs.hung(rig, case)


@pytest.mark.slow
def test_what_does_not_hold_is_told(rig: Rig) -> None:
    """A fault that hits nothing, and one that hits something else, pass as little as a wrong answer does."""
    well = rig.run(rig.request("well"))
    rig.order(Order("transformer", "oom"))
    failed = rig.run(rig.request("ill"))

    with pytest.raises(BrokenError, match="it ended as COMPLETED, not with ModelError"):
        error_of(well, "ModelError")
    with pytest.raises(BrokenError, match="ModelError instead of StorageError"):
        error_of(failed, "StorageError")
    with pytest.raises(BrokenError, match="it ended as FAILED"):
        result_of(failed)
    with pytest.raises(BrokenError, match="its keys are"):
        rig.one_result(well, rig.results())


def test_what_does_not_come_is_told() -> None:
    """By what it was."""
    with pytest.raises(BrokenError, match=r"not after 0\.1 s: rain"):
        until(lambda: False, "rain", 0.1)
