"""What jobs came to, and what a second of a GPU costs."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwen_worker import metrics
from qwen_worker.ledger import Ledger, price_of
from qwen_worker.spent import Spent

ABOUT = {
    "model_id": "org/model", "model_revision": "0f", "preset": "exact", "profile": "bf16",
    "device": {"name": 'A "card"', "memory_total": 80, "memory_peak": 61},
}  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "said", "price"),
    [
        ("NVIDIA H100 80GB HBM3", None, 0.00116),
        ("NVIDIA A100-SXM4-80GB", None, 0.00076),
        ("NVIDIA H100 80GB HBM3", 0.002, 0.002),
        ("NVIDIA H100 80GB HBM3", 0.0, 0.0),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None, None),
        ("cpu", None, None),
        ("cpu", 0.5, 0.5),
    ],
)
def test_what_the_operator_says_goes_before_what_is_published(
    gpu: str, said: float | None, price: float | None
) -> None:
    """Then what is published; where neither is known there is no price."""
    assert price_of(gpu, said) == price


def filled(usd_per_second: float | None) -> Ledger:
    ledger = Ledger(usd_per_second)
    ledger.turn(1.5)
    ledger.turn(0.5)
    edit = Spent("edit", sources=3, cache_hits=1, bytes_in=1000, bytes_out=500)
    ledger.enter("success", edit, {"edit": 2100.0, "total": 3000.0}, [False, True, True])
    ledger.enter("success", Spent("edit", bytes_out=7), {"total": 20.0}, [True])
    ledger.enter("BadInput", Spent(), {"total": 0.5})
    return ledger


def test_jobs_are_counted_and_priced() -> None:
    """A job's GPU time costs, whatever else it did."""
    told = filled(0.001).told()

    assert told["jobs"] == {"success": 2, "BadInput": 1}
    assert told["pictures"] == {"made": 1, "reused": 3}
    assert (told["gpu_s"], told["cost_usd"], told["usd_per_second"]) == (2.0, 0.002, 0.001)
    assert (told["sources"], told["cache_hits"], told["bytes_in"], told["bytes_out"]) == (3, 1, 1000, 507)
    assert filled(None).told()["cost_usd"] is None


def test_prometheus_reads_it() -> None:
    """With its own parser: names, labels and values."""
    text = metrics.text(filled(0.001), ABOUT, {"ready": 12.5}).decode()
    read = {
        (sample.name.removeprefix(metrics.PREFIX), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    assert read["jobs_total", "edit", "success"] == 2
    assert read["jobs_total", "unknown", "BadInput"] == 1
    assert (read["pictures_total", "made"], read["pictures_total", "reused"]) == (1, 3)
    assert (read["sources_total", "hit"], read["sources_total", "miss"]) == (1, 2)
    assert (read["bytes_total", "in"], read["bytes_total", "out"]) == (1000, 507)
    assert (read["gpu_seconds_total",], read["cost_usd_total",]) == (2.0, 0.002)
    assert read["info", 'A "card"', "org/model", "0f", "exact", "bf16"] == 1
    assert (read["device_memory_bytes", "total"], read["device_memory_bytes", "peak"]) == (80, 61)
    assert read["start_seconds", "ready"] == 12.5
    assert read["process_resident_memory_bytes",] > 10**7
    # Each bucket holds what took at most so long.
    buckets = [read["stage_seconds_bucket", bound, "total"] for bound in ("0.01", "0.03", "2.0", "4.0", "+Inf")]
    assert buckets == [1, 2, 2, 3, 3]
    assert read["stage_seconds_count", "total"] == 3
    assert read["stage_seconds_sum", "total"] == pytest.approx(3.0205)
    assert "cost" not in metrics.text(filled(None), ABOUT, {}).decode()
