"""Which memory profile a card gets, and what is said where none fits. On a real GPU: not measured."""

from collections import Counter

import pytest

from qwen_worker.family import EDIT, EDIT_PLUS, FAMILY, IMAGE_21, TEXT, untested
from qwen_worker.profiles import (
    BF16,
    BYTES,
    EDIT_BYTES,
    LARGEST_EDIT_BYTES,
    PROFILES,
    QWEN_IMAGE,
    QWEN_IMAGE_21,
    Capability,
    Card,
    Numbers,
    Part,
    ProfileError,
    choose,
    fitting,
    last_block,
    part_of,
    published,
)

AMPERE, GA102, ADA, HOPPER, BLACKWELL = (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)
CONTEXT_GB = 0.6  # of CUDA, which no worker is without


def card(name: str, gigabytes: float, capability: Capability, *, held: float = 0) -> Card:
    total = round(gigabytes * 1e9)
    return Card(name, capability, total, total - round((held + CONTEXT_GB) * 1e9))


# In GB, about what CUDA says of them.
A4000 = card("NVIDIA RTX A4000", 16.9, GA102)
RTX_4090 = card("NVIDIA GeForce RTX 4090", 25.3, ADA)
RTX_5090 = card("NVIDIA GeForce RTX 5090", 33.7, BLACKWELL)
A40 = card("NVIDIA A40", 47.7, GA102)
L40S = card("NVIDIA L40S", 47.7, ADA)
A100 = card("NVIDIA A100-SXM4-80GB", 85.1, AMPERE)
H100 = card("NVIDIA H100 80GB HBM3", 85.0, HOPPER)
RTX_PRO_6000 = card("NVIDIA RTX PRO 6000", 102.0, BLACKWELL)
H200 = card("NVIDIA H200", 150.0, HOPPER)


def both() -> Numbers:
    """Of an edit model and one that makes pictures from words."""
    numbers = published(EDIT, TEXT)
    assert numbers
    return numbers


def refusal(asked: str, numbers: Numbers, there: Card, beside: int = 0) -> str:
    with pytest.raises(ProfileError) as error:
        choose(asked, numbers, there, beside)  # type: ignore[arg-type]
    said = str(error.value)
    assert "\n" not in said
    assert there.name in said or "this model has another" in said
    return said


def test_the_constants_are_those_of_the_published_classes() -> None:
    """Counted on torch's meta device, each weight by its name."""
    from bench import published as classes  # noqa: PLC0415 - it imports torch, which most tests here do not need

    weights = {name: weight.numel() for name, weight in classes.transformer().named_parameters()}
    found = Counter[Part]()
    for name, count in weights.items():
        found[part_of(name, last_block(weights))] += count
    assert last_block(weights) == 59
    assert found.total() == 20_430_401_088
    vae = sum(weight.numel() for weight in classes.vae().parameters())
    assert vae == 126_892_531
    assert {**found, "plain": found["plain"] + vae} == QWEN_IMAGE.transformer
    # For text-to-image a second transformer lies beside it, and nothing else.
    assert published(EDIT, TEXT) == QWEN_IMAGE + Numbers(found)

    layers = [weight.numel() for weight in classes.text_encoder().parameters()]
    assert sum(layers) == QWEN_IMAGE.text == 7_747_169_280
    assert max(layers) == QWEN_IMAGE.text_leaf == 544_997_376


def test_what_is_known_of_a_model() -> None:
    """By its class; of a model outside the tables nothing."""
    assert published(EDIT, None) == published(EDIT_PLUS, None) == QWEN_IMAGE
    assert published(IMAGE_21, None) == QWEN_IMAGE_21
    assert published(untested("me/mine", "QwenImageEditPipeline"), None) is None
    assert published(EDIT, untested("me/mine", "QwenImagePipeline")) is None


def test_weights_in_bfloat16_are_what_the_table_of_models_says() -> None:
    """In 10^9 bytes; the head of the text encoder, which makes words, is in the table and not in memory."""
    for row in FAMILY.values():
        numbers = published(row, None)
        assert numbers
        assert row.weights_gb
        assert numbers.on_gpu(BF16) / 1e9 == pytest.approx(row.weights_gb, rel=0.025)


BLOCK = "transformer_blocks.7."
LAYERS: dict[str, Part] = {
    f"{BLOCK}img_mod.1.weight": "modulation",
    f"{BLOCK}txt_mod.1.weight": "modulation",
    f"{BLOCK}img_mlp.net.2.weight": "sensitive",
    f"{BLOCK}txt_mlp.net.2.weight": "bulk",
    f"{BLOCK}img_mlp.net.0.proj.weight": "bulk",
    f"{BLOCK}txt_mlp.net.0.proj.weight": "bulk",
    **{
        f"{BLOCK}attn.{layer}.weight": "bulk"
        for layer in (
            "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        )
    },
    **{f"{BLOCK}attn.{norm}.weight": "plain" for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")},
    f"{BLOCK}attn.to_q.bias": "plain",
    f"{BLOCK}img_mod.1.bias": "plain",
    "img_in.weight": "plain",
    "txt_in.weight": "plain",
    "proj_out.weight": "plain",
    "norm_out.linear.weight": "plain",
    "time_text_embed.timestep_embedder.linear_1.weight": "plain",
}  # fmt: skip


@pytest.mark.parametrize(("name", "part"), LAYERS.items())
def test_what_may_become_of_a_layer(name: str, part: Part) -> None:
    """By its name; in the first block and the last, nothing."""
    assert part_of(name, 59) == part
    for end in (0, 59):
        assert part_of(name.replace(".7.", f".{end}."), 59) == "plain"


def test_every_layer_of_the_class_is_one_of_those() -> None:
    """A matrix of a block that has no name above would stay as it is unseen."""
    from bench import published as classes  # noqa: PLC0415

    names = {name for name, _ in classes.transformer().named_parameters() if name.startswith(BLOCK)}
    matrices = {name for name, weight in classes.transformer().named_parameters() if weight.dim() == 2} & names
    assert matrices == {name for name, part in LAYERS.items() if name.startswith(BLOCK) and part != "plain"}


def test_without_blocks_there_is_no_last_one() -> None:
    """As in the transformer of Qwen-Image-2.1, whose blocks have another name."""
    assert last_block([]) == last_block(["img_in.weight", "blocks.3.attn.to_q.weight"]) == -1


@pytest.mark.parametrize(
    ("there", "profile"),
    [
        (A100, "bf16"),
        (H100, "bf16"),
        # With bf16-offload, which fits, a large picture would not.
        (L40S, "fp8"),
        (A40, "int4"),
        (RTX_5090, "fp8-offload"),
        (RTX_4090, "int4-offload"),
        (RTX_PRO_6000, "bf16"),
        (H200, "bf16"),
    ],
    ids=lambda one: one.name if isinstance(one, Card) else one,
)
def test_what_auto_takes_for_an_edit_model(there: Card, profile: str) -> None:
    """The first that fits."""
    assert choose("auto", QWEN_IMAGE, there).name == profile


@pytest.mark.parametrize(
    ("there", "profile"), [(H200, "bf16"), (RTX_PRO_6000, "bf16-offload"), (H100, "fp8"), (A100, "int4")]
)
def test_what_auto_takes_for_two_models(there: Card, profile: str) -> None:
    """An edit model and one that makes pictures from words."""
    assert choose("auto", both(), there).name == profile


def test_what_else_is_kept_on_the_gpu_counts() -> None:
    """LoRAs, what was computed, and what skipping steps remembers."""
    assert choose("auto", QWEN_IMAGE, L40S).name == "fp8"
    assert choose("auto", QWEN_IMAGE, L40S, beside=2 * 10**9).name == "fp8-offload"
    assert choose("fp8", QWEN_IMAGE, L40S, beside=2 * 10**9).name == "fp8"
    assert "all beside it 22.5 GB more" in refusal("fp8", QWEN_IMAGE, L40S, beside=20 * 10**9)


def test_auto_leaves_room_for_the_largest_edit() -> None:
    """Where any profile does: else for a usual one, as on 24 GB."""
    assert fitting(QWEN_IMAGE, L40S)[0].name == "bf16-offload"
    assert fitting(QWEN_IMAGE, L40S, LARGEST_EDIT_BYTES)[0].name == "fp8"
    assert not fitting(QWEN_IMAGE, RTX_4090, LARGEST_EDIT_BYTES)


@pytest.mark.parametrize(("there", "profile"), [(A40, "bf16"), (RTX_4090, "bf16-offload")])
def test_what_auto_takes_for_the_smaller_model(there: Card, profile: str) -> None:
    """Of Qwen-Image-2.1 no transformer is quantized."""
    assert choose("auto", QWEN_IMAGE_21, there).name == profile
    assert {one.weights for one in fitting(QWEN_IMAGE_21, H200)} == {"bf16"}


def test_no_profile_is_smaller_than_the_last() -> None:
    """What is said of a card on which none fits is said of the smallest."""
    sizes = [QWEN_IMAGE.on_gpu(one) for one in PROFILES.values()]
    assert min(sizes) == sizes[-1]
    offloaded = {one.weights: QWEN_IMAGE.on_gpu(one) for one in PROFILES.values() if one.offload}
    for one in PROFILES.values():
        spared = 2 * (QWEN_IMAGE.text - 2 * QWEN_IMAGE.text_leaf)
        assert QWEN_IMAGE.on_gpu(one) == offloaded[one.weights] + (0 if one.offload else spared)


def test_a_card_on_which_nothing_fits() -> None:
    """One sentence: which card, what it lacks, and what it would take."""
    said = refusal("auto", QWEN_IMAGE, A4000)
    needed = QWEN_IMAGE.on_gpu(PROFILES["int4-offload"])
    assert said == (
        f"no profile fits: even int4-offload does not fit the NVIDIA RTX A4000: its weights take {needed / 1e9:.1f} GB "
        "and an edit with all beside it 2.5 GB more, but of its 16.9 GB 16.3 GB are free: choose GPUs of 24 GB or more"
    )


def test_a_model_that_fits_nowhere() -> None:
    """No size of GPU is named where none is large enough."""
    assert refusal("auto", Numbers({"plain": 10**12}), H200).endswith("no GPU is large enough")


def test_a_profile_that_does_not_fit_names_one_that_does() -> None:
    """The best of them; or only what it would take."""
    said = refusal("bf16", QWEN_IMAGE, L40S)
    assert said.startswith("PROFILE=bf16 does not fit the NVIDIA L40S: its weights take 56.6 GB")
    assert said.endswith("choose GPUs of 80 GB or more, or PROFILE=bf16-offload")
    assert choose("bf16-offload", QWEN_IMAGE, L40S) is PROFILES["bf16-offload"]
    assert "or PROFILE=" not in refusal("int4", QWEN_IMAGE, A4000)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_a_profile_that_is_asked_for_is_taken(profile: str) -> None:
    """Also where a better one would fit."""
    assert choose(profile, QWEN_IMAGE, H200).name == profile  # type: ignore[arg-type]


@pytest.mark.parametrize("there", [A40, A100], ids=lambda one: one.name)
@pytest.mark.parametrize("profile", ["fp8", "fp8-offload"])
def test_8_bit_floats_need_a_gpu_that_multiplies_them(there: Card, profile: str) -> None:
    """However much memory there is."""
    said = refusal(profile, QWEN_IMAGE, there)
    assert said.startswith(f"PROFILE={profile} needs a GPU that multiplies 8-bit floats, of compute capability 8.9")
    assert f"the {there.name} has {there.capability[0]}.{there.capability[1]}: choose int4" in said
    assert all(one.weights != "fp8" for one in fitting(QWEN_IMAGE, there))


@pytest.mark.parametrize("profile", ["fp8", "fp8-offload", "int4", "int4-offload"])
def test_a_transformer_of_another_kind_is_not_quantized(profile: str) -> None:
    """Before it is asked what the GPU can do."""
    said = refusal(profile, QWEN_IMAGE_21, A100)
    assert said == (
        f"PROFILE={profile} is for the transformers of Qwen-Image, and this model has another: choose bf16 or "
        "bf16-offload"
    )


@pytest.mark.parametrize("profile", list(PROFILES))
def test_exactly_enough_is_enough(profile: str) -> None:
    """And a byte less is not."""
    needed = round(QWEN_IMAGE.on_gpu(PROFILES[profile])) + EDIT_BYTES  # type: ignore[index]
    choose(profile, QWEN_IMAGE, Card("one", HOPPER, needed, needed))  # type: ignore[arg-type]
    refusal(profile, QWEN_IMAGE, Card("one", HOPPER, needed - 1, needed - 1))


def test_another_process_holds_the_rest() -> None:
    """A larger card would be no better advice than an empty one; auto takes what fits beside it."""
    shared = card(H100.name, 85.0, HOPPER, held=40)
    said = refusal("bf16", QWEN_IMAGE, shared)
    assert "of its 85.0 GB 44.4 GB are free: another process holds the rest: end it" in said
    assert said.endswith(", or PROFILE=fp8")
    assert choose("auto", QWEN_IMAGE, shared).name == "fp8-offload"
    assert "another process holds the rest" in refusal("auto", QWEN_IMAGE, card(H100.name, 85.0, HOPPER, held=80))


def test_what_cuda_itself_takes_is_no_other_process() -> None:
    """Where that little is missing, a larger card is needed, and one of the same size is none."""
    needed = 47_400_000_000
    said = refusal("bf16", Numbers({"plain": (needed - EDIT_BYTES) // 2}), A40)
    assert said.endswith("of its 47.7 GB 47.1 GB are free: choose GPUs of 80 GB or more")


def test_what_is_modelled_of_fewer_bits() -> None:
    """No part takes more than in bfloat16, and the plain ones as much."""
    for parts in BYTES.values():
        assert parts["plain"] == 2
        assert all(0 < size <= BYTES["bf16"][part] for part, size in parts.items())


def test_models_add_up() -> None:
    """Part by part; the largest layer is one of both."""
    both = Numbers({"plain": 1, "bulk": 2}, text=3, text_leaf=2) + Numbers({"bulk": 5}, text=4, text_leaf=1)
    assert both == Numbers({"plain": 1, "bulk": 7}, text=7, text_leaf=2)
    assert both.is_quantizable
    assert not Numbers({"plain": 9, "bulk": 0}).is_quantizable
