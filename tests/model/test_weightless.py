"""What `python -m bench.memory` counts is what real tensors take. On a real GPU: not measured."""

import copy
import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench import memory
from bench.weightless import ALIGNMENT, META, Counted
from qwen_worker.family import EDIT
from qwen_worker.model.load import Model

GIGABYTE = 10**9
SIZE = (256, 320)
PATCHES = 16 * 16 * 3 * 2 * 14 * 14  # numbers, of at most 224 x 224 pixels
POSITIONS = 2 * 4096 * 8 * 8  # bytes of complex numbers, before zero and after
GRID = 16  # pixels to a latent of the tiny VAE


def peak(call: Callable[[], object]) -> int:
    """Most bytes at a time, with the input that the call makes itself."""
    gc.collect()
    with torch.no_grad(), Counted("all") as counter:
        call()
    most: int = counter.peaks["all"]
    return most


def shapes_only(network: Any) -> Any:
    """The same network without its numbers."""
    made = copy.deepcopy(network).to(META)
    if rope := getattr(made, "pos_embed", None):
        rope.pos_freqs, rope.neg_freqs = rope.pos_freqs.to(META), rope.neg_freqs.to(META)
    return made


def encoded(vae: Any, device: Any) -> None:
    vae.encode(torch.zeros(1, 3, 1, *SIZE, dtype=torch.bfloat16, device=device)).latent_dist.mode()


def decoded(vae: Any, device: Any) -> None:
    sides = (side // GRID for side in SIZE)
    vae.decode(torch.zeros(1, 16, 1, *sides, dtype=torch.bfloat16, device=device))


def denoised(transformer: Any, device: Any) -> None:
    shapes = [[(1, 10, 8), (1, 10, 8)]]
    transformer(
        hidden_states=torch.zeros(1, 160, 64, dtype=torch.bfloat16, device=device),
        encoder_hidden_states=torch.zeros(1, 77, 32, dtype=torch.bfloat16, device=device),
        timestep=torch.ones(1, dtype=torch.bfloat16, device=device),
        img_shapes=shapes,
    )


def read(text_encoder: Any, device: Any) -> None:
    """A picture of 8 x 12 patches among words, whose numbers are kept on either device."""
    ids = torch.tensor([[5] * 9 + [text_encoder.config.image_token_id] * 24 + [7] * 11])
    text_encoder(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.zeros(96, 3 * 2 * 14 * 14, dtype=torch.bfloat16, device=device),
        image_grid_thw=torch.tensor([[1, 8, 12]]),
        output_hidden_states=True,
    )


@pytest.mark.parametrize(
    ("name", "call"), [("vae", encoded), ("vae", decoded), ("transformer", denoised), ("text_encoder", read)]
)
def test_a_network_takes_with_shapes_alone_what_it_takes_with_numbers(
    model: Model, name: str, call: Callable[[Any, Any], None]
) -> None:
    """To the byte."""
    network = getattr(model.pipeline, name)
    real = peak(lambda: call(network, "cpu"))
    network = shapes_only(network)
    with memory.weightless():
        assert peak(lambda: call(network, META)) == real


def test_a_whole_edit_takes_as_much_and_what_is_brought_to_the_gpu(tmp_path: Path) -> None:
    """On a CPU nothing is brought anywhere: not the reference, nor its patches for each prompt, nor the positions."""
    case = memory.Case("small", EDIT.id, (SIZE,), SIZE)
    real = memory.peaks(memory.tiny(tmp_path / "real", case.pipeline), case)
    small = memory.tiny(tmp_path / "small", case.pipeline)
    pipeline: Any = small.pipeline
    for network in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        network.to(META)
    pipeline._device = META
    with memory.weightless():
        found = memory.peaks(small, case)
    brought = 2 * 3 * math.prod(SIZE) + 2 * 2 * PATCHES + POSITIONS
    for stage, size in real.items():
        assert size < found[stage] <= size + brought


def attention(tokens: int, head: int = 16, **said: Any) -> Callable[[], object]:
    def call() -> object:
        query = torch.zeros(1, 1, tokens, head, dtype=torch.bfloat16, device=said.get("device"))
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool) if said.get("mask") else None
        return scaled_dot_product_attention(query, query, query, attn_mask=mask)

    return call


def test_the_weights_of_attention_are_never_all_in_memory() -> None:
    """As in torch's kernel for CPUs; the plain way, whose weights they are, would be seen."""
    tokens = 2048
    with sdpa_kernel(SDPBackend.MATH):
        plain = peak(attention(tokens))
    fused = peak(attention(tokens))
    with memory.weightless():
        counted = peak(attention(tokens, device=META))
    assert plain > 2 * tokens**2 > 4 * fused
    assert counted == fused


def test_large_heads_are_summed_up_in_memory_in_float32() -> None:
    """As in the only kernel of torch for CUDA that takes those of the VAE."""
    tokens = 512
    with memory.weightless():
        made = peak(attention(tokens, 384, device=META))
        assert made - peak(attention(tokens, 128, device=META)) == tokens * (2 * 2 * 256 + 4 * 384)


def test_a_mask_counts_as_numbers_of_the_kernels_kind() -> None:
    """The kernel adds it; two bytes each instead of one."""
    tokens = 512
    with memory.weightless():
        more = peak(attention(tokens, device=META, mask=True)) - peak(attention(tokens, device=META))
    assert more == (1 + 2) * tokens**2


def test_attention_that_would_need_all_weights_is_refused() -> None:
    """Rather than counted as if it did not."""
    query, key = (torch.zeros(1, heads, 8, 16, device=META) for heads in (4, 2))
    mask = torch.ones(8, 8, dtype=torch.bool)
    with memory.weightless(), pytest.raises(ValueError, match="all its weights"):
        scaled_dot_product_attention(query, key, key, attn_mask=mask, enable_gqa=True)


def test_what_is_freed_does_not_count() -> None:
    """Views are what they are views of, and each storage is counted once, in whole pieces of the allocator."""
    held = torch.zeros(10**6)
    with Counted("one") as counter:
        held.view(10, -1).t()
        assert counter.live == 0
        first = torch.zeros(1000, dtype=torch.uint8)
        second = [first[:10], first.view(10, 100), first.add_(1)]
        assert counter.live == 2 * ALIGNMENT
        del first
        assert counter.live == 2 * ALIGNMENT
        second.clear()
        assert counter.live == 0
        counter.stage = "two"
        torch.zeros(1)
    assert counter.peaks == {"one": 2 * ALIGNMENT, "two": ALIGNMENT}


@pytest.mark.slow
def test_the_file_says_what_is_computed() -> None:
    """Of the smallest edit, at the published sizes."""
    rows = {row["name"]: row for row in json.loads(memory.OUT.read_text())["cases"]}
    written = rows[memory.SMALLEST]
    assert memory.measured(memory.CASES[0]) == {name: written[name] for name in ("bytes", "attention")}
