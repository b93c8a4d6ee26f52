"""LoRAs: small changes of the transformer that lie beside its weights until a request switches them on."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import QwenImageLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

from qwen_worker.family import LoraSource
from qwen_worker.model.hub import Hub, LoadError

# What diffusers, peft and safetensors raise at a file that they cannot use.
FAILURES = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, SafetensorError)
# The settings of training, in a file's header, that say how strong its weights are. The rest is left out: some of it
# would change the transformer itself.
STRENGTH = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
MAX_REASON = 300


@dataclass(frozen=True)
class Lora:
    """One that is loaded.

    Attributes:
        trigger_word: which its prompts must hold; may be empty.
        origin: what it is: `source@revision/weight_file`.
    """

    trigger_word: str
    origin: str


def load_loras(transformer: Any, sources: Sequence[LoraSource], hub: Hub) -> dict[str, Lora]:
    """Lay LoRAs beside the weights of a transformer, on its device and in its precision, all of them off.

    Raises:
        LoadError: naming the one that is missing, broken, or not made for this transformer.
    """
    loras = {source.name: _load(transformer, source, hub) for source in sources}
    if loras:
        transformer.disable_lora()
    return loras


def size_of(sources: Sequence[LoraSource], hub: Hub) -> int:
    """Bytes that LoRAs take beside the weights, at most: of their files. What is missing is told when it is loaded."""
    total = 0
    for source in sources:
        with suppress(LoadError, OSError):
            total += hub.file(source.origin, source.weight_file)[0].stat().st_size
    return total


def lay_lightning(transformer: Any, source: LoraSource, hub: Hub) -> str:
    """Lay a LoRA beside the weights of a transformer, to be fused; returns what it is.

    Raises:
        LoadError: it is missing, broken, or not made for this transformer.
    """
    return _load(transformer, source, hub).origin


def fuse(part: torch.nn.Module) -> None:
    """Add what lies beside the weights in a part of a transformer to them, and take it away."""
    for layer in part.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    recurse_remove_peft_layers(part)


@contextmanager
def switched_on(transformer: Any, scales: Mapping[str, float]) -> Iterator[None]:
    """For one edit, these LoRAs are on, each with its scale, and no other; afterwards all are off."""
    if not scales:
        yield
        return
    try:
        transformer.set_adapters([_adapter(name) for name in scales], list(scales.values()))
        transformer.enable_lora()
        yield
    finally:
        transformer.disable_lora()


def _adapter(name: str) -> str:
    """Its name in peft, which fails with names that torch or peft use themselves, as `keys` or `lora_A`."""
    return f"offered-{name}"


def _load(transformer: Any, source: LoraSource, hub: Hub) -> Lora:
    try:
        file, revision = hub.file(source.origin, source.weight_file)
        weights, strength = _read(file)
        with warnings.catch_warnings():
            # That there are several is meant.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            # That one laid beside 8-bit weights cannot be merged with them: none is.
            warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated without")
            transformer.load_lora_adapter(
                dict(weights),
                prefix=None,
                adapter_name=_adapter(source.name),
                metadata=strength,
                low_cpu_mem_usage=True,  # nothing is filled with random numbers first
            )
        _check_arrival(weights, _arrived(transformer, _adapter(source.name)))
    except (LoadError, *FAILURES) as error:
        raise LoadError(f"the LoRA {source.name} cannot be loaded: {str(error)[:MAX_REASON]}") from error
    return Lora(source.trigger_word, f"{source.source}@{revision}/{source.weight_file}")


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Weights by their names in the transformer and in peft; and their strength, if the file's header tells it.

    Raises:
        LoadError: some of the weights cannot be used.
    """
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dictionary
        header = dict(json.loads((opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}")))
    # diffusers understands the names of other trainers only where an `alpha` tells it that they are such.
    renamed = {
        name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B."): tensor
        for name, tensor in tensors.items()
    }
    understood = QwenImageLoraLoaderMixin.lora_state_dict(renamed)
    # A copy: what was read is a view of the file, and somebody may replace that.
    weights = {name.removeprefix("transformer."): one.clone() for name, one in understood.items()}
    given = sum(not name.endswith(".alpha") for name in tensors)
    if len(weights) < max(given, 1):  # diffusers leaves some out with a warning, or without
        raise LoadError(f"of its {given} tensors only {len(weights)} are weights of a LoRA")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise LoadError("it holds numbers that are not finite")
    return weights, _strength(header, weights)


def _strength(header: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    said = {name: header[f"transformer.{name}"] for name in STRENGTH if f"transformer.{name}" in header}
    modules = sorted({name.rpartition(".lora_")[0] for name in weights})
    return {**said, "target_modules": modules} if said else None


def _arrived(transformer: Any, adapter: str) -> set[str]:
    """Names of the weights of an adapter that the transformer now has."""
    return {
        f"{name}.lora_{side}.weight"
        for name, module in transformer.named_modules()
        if isinstance(module, LoraLayer)
        for side, layers in (("A", module.lora_A), ("B", module.lora_B))
        if adapter in layers
    }


def _check_arrival(weights: Mapping[str, torch.Tensor], arrived: set[str]) -> None:
    """Every weight is in its place, and each place has its weight: peft warns at most.

    Raises:
        LoadError: it is not so.
    """
    if lost := sorted(weights.keys() - arrived):
        raise LoadError(f"{len(lost)} of its {len(weights)} weights have no place in the transformer: {lost[0]}")
    if missing := sorted(arrived - weights.keys()):
        raise LoadError(f"it lacks {len(missing)} weights, the first is {missing[0]}")
