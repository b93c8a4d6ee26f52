"""What `python -m bench.plan` says of a card. On a real GPU: not measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import plan
from local.worker import ROOT
from qwen_worker import cards
from qwen_worker.family import EDIT, EDIT_PLUS, FAMILY, IMAGE_21, TEXT, untested
from qwen_worker.profiles import EDIT_BYTES, GPUS_GB, LARGEST_EDIT_BYTES, PROFILES, QWEN_IMAGE, USABLE


def of(name: str) -> Any:
    card = cards.found(name)
    assert card
    return card.card


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = plan.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_card_has_what_is_said_of_its_size() -> None:
    """The advice to take GPUs of so many GB goes by what any of that size has free."""
    for one in cards.CARDS:
        assert one.sold_gb in GPUS_GB
        assert one.sold_gb * 1e9 * USABLE <= one.card.free < one.card.total < one.sold_gb * 1e9 * 1.1


def test_each_card_is_found_by_its_name() -> None:
    """And by less of it, if that is enough."""
    for one in cards.CARDS:
        assert cards.found(one.name) == one
        assert cards.found(f"nvidia {one.name.lower()}") == one
    for less, name in (("4090", "RTX 4090"), ("GeForce RTX 3090", "RTX 3090"), ("L40", "L40")):
        assert cards.found(less) == cards.found(name)
    for none in ("6000", "rtx", "nvidia", "", "T4", "A100 40GB"):
        assert cards.found(none) is None


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX A5000", "RTX A5000"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_each_card_is_found_by_its_drivers_name(told: str, name: str) -> None:
    """An A100 of 40 GB is another card."""
    assert cards.of_driver(told) == cards.found(name)
    assert cards.of_driver("NVIDIA A100-SXM4-40GB") is None


def test_the_worker_chooses_by_the_smallest_and_the_largest_edit() -> None:
    """As the table has them, which is computed."""
    assert min(plan.edits().values()) == EDIT_BYTES
    assert max(plan.edits().values()) == LARGEST_EDIT_BYTES


@pytest.mark.parametrize(
    ("card", "auto"),
    [("H100", "bf16"), ("A100", "bf16"), ("L40S", "fp8"), ("A40", "int4"), ("5090", "fp8-offload"),
     ("4090", "int4-offload"), ("L4", "int4-offload"), ("A4000", None)],
)  # fmt: skip
def test_what_a_card_takes(card: str, auto: str | None) -> None:
    """The first that fits; each that does not says why."""
    made = plan.plan(of(card), EDIT, None)
    assert made["auto"] == auto
    fitting = [one["name"] for one in made["profiles"] if not one["problem"]]
    assert bool(fitting) == bool(auto)
    assert auto is None or auto in fitting
    assert bool(made["why_none"]) == (auto is None)
    for one in made["profiles"]:
        assert not one["problem"] or one["problem"].startswith(f"PROFILE={one['name']} ")


def test_the_memory_of_a_profile() -> None:
    """Weights, and each edit with them; several pictures are for models that take them."""
    (first, *_) = plan.plan(of("H200"), EDIT_PLUS, None)["profiles"]
    weights = QWEN_IMAGE.on_gpu(PROFILES["bf16"])
    assert first["weights_bytes"] == weights
    assert first["with_edit_bytes"] == {case: weights + size for case, size in plan.edits().items()}
    (single, *_) = plan.plan(of("H200"), EDIT, None)["profiles"]
    assert first["with_edit_bytes"].keys() - single["with_edit_bytes"].keys() == {"3 pictures of 1 megapixel"}
    (both, *_) = plan.plan(of("H200"), EDIT, TEXT)["profiles"]
    assert both["weights_bytes"] - weights == 2 * 20_430_401_088


def test_what_was_not_computed_is_not_told() -> None:
    """Of Qwen-Image-2.1 only the weights are known."""
    made = plan.plan(of("A40"), IMAGE_21, None)
    assert {size for one in made["profiles"] for size in one["with_edit_bytes"].values()} == {None}
    assert plan.NOT_COMPUTED in plan.markdown(made)


def test_which_presets_go_with_a_model() -> None:
    """By the published LoRAs; what is missing is to be named by the operator."""
    presets = plan.plan(of("H200"), EDIT, TEXT)["presets"]
    assert presets["exact"] == presets["balanced"] == {"goes": True, "said": []}
    assert [one.rpartition("/")[2][:24] for one in presets["fast-4"]["said"]] == [
        "Qwen-Image-Edit-Lightnin",
        "Qwen-Image-Lightning-4st",
    ]
    newer = plan.plan(of("H200"), FAMILY["Qwen/Qwen-Image-Edit-2511"], None)["presets"]
    assert newer["fast-4"]["goes"]
    assert not newer["fast-8"]["goes"]
    assert "name it in LIGHTNING_LORA" in newer["fast-8"]["said"][0]
    other = plan.plan(of("H200"), IMAGE_21, None)["presets"]
    assert [name for name, one in other.items() if one["goes"]] == ["exact"]


def test_models_that_do_not_go_together() -> None:
    """Or of which nothing is known: one sentence."""
    with pytest.raises(
        plan.PlanError, match=r"^Qwen/Qwen-Image goes with .* of another model than Qwen/Qwen-Image-2\.1"
    ):
        plan.plan(of("H200"), IMAGE_21, TEXT)
    with pytest.raises(plan.PlanError, match=r"^the size of me/mine is not known"):
        plan.plan(of("H200"), untested("me/mine", "QwenImageEditPipeline"), None)


def report(gpu: str, *, tiny: bool = False, valid: bool = True) -> dict[str, Any]:
    """As `python -m bench.gpu` writes it, as far as it is read here."""
    return {
        "setting": {"machine": {"gpu": {"name": gpu}}, "arms": {"tiny": tiny}},
        "valid": valid,
        "rows": [
            {"what": "4 steps", "ours": "1.50 s", "verdict": "PASS"},
            {"what": "40 steps", "ours": "not measured", "verdict": "not measured"},
        ],
    }


def test_what_was_measured_is_told_of_the_same_kind_of_card(tmp_path: Path) -> None:
    """And only if the run was one, and of true weights."""
    file = tmp_path / "gpu.json"
    assert plan.measured("H200", file) == []
    for told, found in (
        (report("NVIDIA H200"), ["4 steps: 1.50 s"]),
        (report("NVIDIA H100 80GB HBM3"), []),
        (report("NVIDIA H200", tiny=True), []),
        (report("NVIDIA H200", valid=False), []),
    ):
        file.write_text(json.dumps(told))
        assert plan.measured("H200", file) == plan.measured("NVIDIA H200", file) == found
    file.write_text(json.dumps(report("NVIDIA Mine")))
    assert plan.measured("NVIDIA Mine", file) == ["4 steps: 1.50 s"]
    assert plan.measured("NVIDIA Other", file) == []


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """One row a profile, one line for auto."""
    code, out, _ = said(capsys, "rtx", "4090")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| ")] == ["profile", *PROFILES]
    (fits,) = (line for line in lines if line.startswith("| int4-offload"))
    assert fits.startswith("| int4-offload | yes | 18.8 GB | 21.3 GB | 25.8 GB (!) |")
    assert lines.count("PROFILE=auto takes: int4-offload") == 1
    assert "computed" in out


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence of the worker."""
    code, out, _ = said(capsys, "A4000")
    assert code == 0
    assert "PROFILE=auto takes: none" in out.splitlines()
    assert "no profile fits: even int4-offload does not fit the RTX A4000" in out


def test_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """The same as JSON."""
    _, out, _ = said(capsys, "A40", "--json", "--model", EDIT_PLUS.id, "--t2i", TEXT.id)
    made = json.loads(out)
    assert made == json.loads(json.dumps(plan.plan(of("A40"), EDIT_PLUS, TEXT)))
    assert made["models"] == [EDIT_PLUS.id, TEXT.id]


@pytest.mark.parametrize("arguments", [(), ("T4",), ("6000",)])
def test_no_card(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """One sentence that lists them all."""
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert all(card.name in line for card in cards.CARDS)


def test_a_named_card_needs_no_torch() -> None:
    """So the answer is there at once."""
    code = "import sys, bench.plan; bench.plan.main(['A40']); print('torch' in sys.modules)"
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False"
