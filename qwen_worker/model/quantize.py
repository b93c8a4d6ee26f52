"""A transformer's large matrices in 8 or 4 bits, made of them on the GPU one by one: they never lie there whole."""

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torchao.quantization import Float8MMConfig, Float8Tensor, Int8WeightOnlyConfig, PerRow, quantize_
from torchao.quantization.quant_api import QuantizeTensorToFloat8Kwargs

from qwen_worker.profiles import Part, Weights, part_of


def quantize(transformer: Any, weights: Weights, block: int) -> None:
    """Quantize the layers of one block of a QwenImageTransformer2DModel, which is on the GPU.

    Args:
        transformer: whole.
        weights: in what numbers.
        block: number of the block.
    """
    last = len(transformer.transformer_blocks) - 1
    for name, layer in list(transformer.transformer_blocks[block].named_modules()):
        part = part_of(f"transformer_blocks.{block}.{name}.weight", last)
        if part != "plain" and (change := _CHANGES[weights].get(part)):
            owner, _, own = name.rpartition(".")
            setattr(transformer.transformer_blocks[block].get_submodule(owner), own, change(layer))


def _fp8(layer: torch.nn.Linear) -> torch.nn.Linear:
    """Multiplied as 8-bit floats: each row of the weight, and of what comes in, has its own scale.

    As Float8DynamicActivationFloat8WeightConfig of torchao makes them, which refuses to on a CPU.
    """
    incoming = QuantizeTensorToFloat8Kwargs(torch.float8_e4m3fn, PerRow())
    fast = Float8MMConfig(use_fast_accum=True)
    weight = Float8Tensor.from_hp(layer.weight.data, granularity=PerRow(), act_quant_kwargs=incoming, mm_config=fast)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def _int8(layer: torch.nn.Linear) -> torch.nn.Linear:
    """Kept as 8-bit integers, multiplied in bfloat16."""
    quantize_(layer, Int8WeightOnlyConfig())
    return layer


def _nf4(layer: torch.nn.Linear) -> torch.nn.Linear:
    """Kept in the 4 bits of NF4, multiplied in bfloat16: for thousands of rows each weight is written out first."""
    kept: Any = {"compress_statistics": False, "quant_type": "nf4"}
    made: torch.nn.Linear = Linear4bit(
        layer.in_features, layer.out_features, compute_dtype=layer.weight.dtype, device="meta", **kept
    )
    weight: Any = Params4bit(layer.weight.data, requires_grad=False, **kept)
    made.weight = weight.to(layer.weight.device)
    made.bias = layer.bias
    return made


_CHANGES: dict[Weights, dict[Part, Callable[[torch.nn.Linear], torch.nn.Linear]]] = {
    "bf16": {},
    "fp8": {"bulk": _fp8, "modulation": _int8},
    "int4": {"bulk": _nf4, "modulation": _int8, "sensitive": _int8},
}
